//! What makes an operation impossible.

/// Why an operation cannot be done as asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The threads of an engine cannot be started, or `TRITRAIN_TIER` names no tier of this machine.
    #[error(transparent)]
    Cpu(#[from] tritrain_backend::CpuError),
    /// Numbers or codes that cannot be converted.
    #[error(transparent)]
    Numbers(#[from] tritrain_trit::Error),
    /// Rows that cannot be clustered.
    #[error(transparent)]
    Cluster(#[from] tritrain_cluster::Error),
    /// Sizes that do not fit together.
    #[error("{what}: expected {expected} elements ({shape}), found {found}; check the shape")]
    Length {
        /// Which array.
        what: &'static str,
        /// The sizes that its length is the product of.
        shape: String,
        /// Their product.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// Sizes whose product no memory holds, or whose sums would not be exact.
    #[error("{what} of {shape}: expected {expected}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// Its sizes.
        shape: String,
        /// What would do.
        expected: String,
    },
    /// A scale that is no number.
    #[error("the scale of packed codes is {found}, expected a finite number from 0 on; the data is damaged")]
    Scale {
        /// The scale.
        found: f32,
    },
    /// An engine outside the processor failed. Nothing was computed elsewhere instead.
    #[error("{engine}: {reason}")]
    Engine {
        /// Its name.
        engine: String,
        /// What it said.
        reason: String,
    },
}

/// The product of sizes, or that an array of them cannot be.
pub(crate) fn product(what: &'static str, sizes: &[usize]) -> crate::Result<usize> {
    sizes.iter().try_fold(1usize, |product, size| product.checked_mul(*size)).ok_or_else(|| Error::Shape {
        what,
        shape: shape(sizes),
        expected: format!("at most {} elements", usize::MAX),
    })
}

/// That an array has the length of its sizes.
pub(crate) fn check(what: &'static str, found: usize, sizes: &[usize]) -> crate::Result<()> {
    let expected = product(what, sizes)?;
    if found == expected { Ok(()) } else { Err(Error::Length { what, shape: shape(sizes), expected, found }) }
}

fn shape(sizes: &[usize]) -> String {
    sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ")
}
