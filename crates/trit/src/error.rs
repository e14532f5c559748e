//! The one error type of this crate.

/// What can be wrong with numbers, codes and packed bytes.
///
/// Every variant names the place (an index into the slice that was passed in, or a byte and the
/// position of the code in it), what was expected there and what was found.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A weight or an activation is NaN or infinite.
    #[error(
        "{what} {index} is {found}, expected a finite number; \
         the step that wrote it diverged or the file is damaged"
    )]
    NonFinite {
        /// What the slice holds: "weight" or "row element".
        what: &'static str,
        /// Index of the first such value.
        index: usize,
        /// The value, NaN or ±inf.
        found: f32,
    },

    /// The mean of |w| does not fit the fp16 scale.
    #[error(
        "mean |w| over {n} weights is {found}, expected 0 to 65504 (the largest f16); \
         lower the learning rate or the initial standard deviation"
    )]
    ScaleRange {
        /// Number of weights under the mean.
        n: usize,
        /// The mean. NaN or infinity when the sum itself overflowed or was not a number.
        found: f32,
    },

    /// Two slices that belong together have lengths that do not.
    #[error(
        "{what} has length {found}, expected {expected} for {n} values; resize the output or check the shape"
    )]
    Length {
        /// Which slice: "packed bytes" or "row codes".
        what: &'static str,
        /// Number of values on the other side.
        n: usize,
        /// Length that fits them.
        expected: usize,
        /// Length of the slice.
        found: usize,
    },

    /// A code to be packed lies outside its codebook.
    #[error(
        "code {index} is {found}, expected {low} to {high} ({format}); quantise with the matching codebook"
    )]
    Code {
        /// The packing: "2-bit ternary", "base-3 ternary" or "base-5 five-level".
        format: &'static str,
        /// Index of the first such code.
        index: usize,
        /// The code.
        found: i8,
        /// Smallest code of the codebook.
        low: i8,
        /// Largest code of the codebook.
        high: i8,
    },

    /// A 2-bit field holds the pattern 3, which stands for no ternary code.
    #[error(
        "packed byte {byte}, position {position}: bit pattern {found}, expected 0 to 2 (2-bit ternary); \
         the data is damaged or in another packing"
    )]
    Pattern {
        /// Index of the byte.
        byte: usize,
        /// Position of the field in the byte, 0 (lowest bits) to 3.
        position: usize,
        /// The pattern.
        found: u8,
    },

    /// A byte is too large to be a group of digits.
    #[error(
        "packed byte {byte} is {found}, expected 0 to {largest} ({format}); \
         the data is damaged or in another packing"
    )]
    Byte {
        /// The packing: "base-3 ternary" or "base-5 five-level".
        format: &'static str,
        /// Index of the byte.
        byte: usize,
        /// The byte.
        found: u8,
        /// Largest byte that stands for a group.
        largest: u8,
    },

    /// The last byte holds something behind the last code.
    #[error(
        "packed byte {byte}, position {position}: padding is code {found}, expected {expected} ({format}); \
         the shape is too short for the data or the data is damaged"
    )]
    Padding {
        /// The packing.
        format: &'static str,
        /// Index of the byte, always the last.
        byte: usize,
        /// Position of the code in the byte, counted in the order of the codes.
        position: usize,
        /// The code found there.
        found: i8,
        /// The code that stands for zero in this codebook.
        expected: i8,
    },

    /// A byte of a block stands for no ternary codes.
    #[error(
        "byte {byte} is {found}, expected ternary codes ({format}); the data is damaged or was made by another quantiser"
    )]
    Trits {
        /// The block format.
        format: &'static str,
        /// Index of the byte.
        byte: usize,
        /// The byte.
        found: u8,
    },

    /// A block format that cannot do what was asked.
    #[error("block format {found}, expected {expected}; choose one of these")]
    Format {
        /// Name of the format.
        found: &'static str,
        /// Names of those that can.
        expected: &'static str,
    },

    /// Entropy-coded bytes that no encoder wrote.
    #[error("{what} is impossible (entropy-coded ternary); the data is damaged or the shape is not its own")]
    Stream {
        /// What cannot be.
        what: &'static str,
    },
}
