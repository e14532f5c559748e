//! Documents as vectors, to be clustered: by their words (latent semantic analysis) or by the token
//! embedding of a model.
//!
//! Two passes over the text, as everywhere here in chunks of about 8 MiB: [`Fit`] counts and learns,
//! [`Vectors`] embeds. Documents are cut into passages of at most 8 KiB, at paragraph ends, and each
//! passage is one vector. Nothing depends on the number of threads.

mod embedder;
mod features;
mod fit;
mod lsa;
mod passage;
mod symmetric;
mod vectors;

pub(crate) use embedder::Parts;
pub use embedder::{Embedder, Scratch};
pub(crate) use features::words;
pub use fit::{Fit, Fitted};
pub(crate) use lsa::dot;
pub(crate) use symmetric::eigen;
pub use vectors::{Passage, PassageText, Vectors, visit};
