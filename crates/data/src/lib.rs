//! Corpora, tokenizer, token shards and the resumable batch plan.
