//! From files to batches, through the public interface.

mod batches;
mod chats;
mod common;
mod conversations;
mod embedding;
mod identity;
mod plans;
mod preparing;
mod readers;
mod tokenizers;
