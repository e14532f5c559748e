//! Exact k-means on the operations of a backend: seeding, fits, mini-batches, the choice of k.
//!
//! A fit repeats two steps (Lloyd, "Least squares quantization in PCM", 1982): every row gets the label of its
//! nearest centroid, the first where several are nearest; every centroid becomes the mean of its rows. How
//! nearest centroids are found changes the time alone, see [`Method`]. Results are a function of the rows, the
//! options and the seed: the same bits on any number of threads.

mod error;
mod fit;
mod mini_batch;
mod points;
mod seed;
mod suggest;

pub use error::Error;
pub use fit::{Fit, Method, Options, Start, Stop, fit, label};
pub use mini_batch::MiniBatch;
pub use points::Points;
pub use suggest::{Candidate, Suggestion, silhouette, suggest};

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
