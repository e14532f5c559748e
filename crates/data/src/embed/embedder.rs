//! From a text to a vector.

use std::sync::LazyLock;

use super::features::{Count, Counter, Features};
use super::lsa::add_scaled;
use crate::{Result, Tokenizer};

/// A fitted embedding: a text becomes the sum of its features' vectors, without the mean, of length 1.
///
/// A feature that occurs `n` times counts `1 + ln n` times. The vectors carry the features' inverse
/// document frequencies, `ln((1 + passages) / (1 + passages with the feature))`: what is everywhere says nothing.
#[derive(Debug)]
pub struct Embedder<'t> {
    pub(super) features: Features<'t>,
    pub(super) dim: usize,
    /// `[width][dim]`, times the inverse document frequencies.
    pub(super) table: Vec<f32>,
    /// `[dim]`: what is taken from the weighted mean of a text's features.
    pub(super) mean: Vec<f32>,
}

/// What a file keeps of an [`Embedder`].
pub(crate) struct Parts<'e> {
    /// Seed and bits of the hash of words.
    pub(crate) hash: (u64, u32),
    /// `[width][dim]`.
    pub(crate) vectors: &'e [f32],
    /// `[dim]`.
    pub(crate) mean: &'e [f32],
}

/// What embedding needs besides the text. One per thread.
#[derive(Debug)]
pub struct Scratch(Counter);

/// `1 + ln count`. The logarithm of `libm` is plain Rust: the same bits on every machine.
static DAMPED: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let damped = |count: u32| if count == 0 { 0.0 } else { 1.0 + libm::log(f64::from(count)) as f32 };
    (0..=Count::MOST).map(damped).collect()
});

/// The weight of a feature that occurs `count` times in a passage.
pub(super) fn damped(count: Count) -> f32 {
    DAMPED.get(count.count() as usize).copied().unwrap_or(0.0)
}

/// Inverse document frequency of a feature in `with` of `passages`: zero for one in all of them.
pub(super) fn inverse_frequency(passages: u64, with: u32) -> f32 {
    libm::log((1.0 + passages as f64) / (1.0 + f64::from(with))) as f32
}

impl<'t> Embedder<'t> {
    /// Components of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The tokenizer, where features are tokens.
    pub fn tokenizer(&self) -> Option<&'t Tokenizer> {
        match self.features {
            Features::Words { .. } => None,
            Features::Tokens(tokenizer) => Some(tokenizer),
        }
    }

    /// What a file keeps.
    pub(crate) fn parts(&self) -> Parts<'_> {
        let hash = match self.features {
            Features::Words { seed, bits } => (seed, bits),
            Features::Tokens(_) => (0, 0),
        };
        Parts { hash, vectors: &self.table, mean: &self.mean }
    }

    /// From what a file kept, whose sizes the caller has checked. Without a tokenizer features are words.
    pub(crate) fn from_parts(
        (seed, bits): (u64, u32),
        tokenizer: Option<&'t Tokenizer>,
        dim: usize,
        table: Vec<f32>,
        mean: Vec<f32>,
    ) -> Self {
        let features = tokenizer.map_or(Features::Words { seed, bits }, Features::Tokens);
        Embedder { features, dim, table, mean }
    }

    /// Room for one thread to embed in.
    pub fn scratch(&self) -> Scratch {
        Scratch(self.features.counter())
    }

    /// The vector of a text, as one passage whatever its length, into `out` `[dim]`.
    ///
    /// A text without any feature that the fit has seen points along the first axis: with words, the
    /// direction of the average passage. So every vector has length 1.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) where features are tokens.
    pub fn embed(&self, scratch: &mut Scratch, text: &str, out: &mut [f32]) -> Result<()> {
        let counts = self.features.count(&mut scratch.0, text)?;
        self.project(&counts, out);
        normalise(out);
        Ok(())
    }

    /// The weighted mean of the features' vectors, less the mean.
    pub(super) fn project(&self, counts: &[Count], out: &mut [f32]) {
        out.fill(0.0);
        let mut sum = 0.0;
        for &count in counts {
            let weight = damped(count);
            sum += weight;
            let from = count.id() * self.dim;
            add_scaled(out, weight, self.table.get(from..from + self.dim).unwrap_or_default());
        }
        let scale = if sum > 0.0 { 1.0 / sum } else { 0.0 };
        out.iter_mut().zip(&self.mean).for_each(|(out, mean)| *out = *out * scale - mean);
    }
}

/// Scales to length 1; the first axis in place of zero and of what is not finite.
pub(super) fn normalise(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    if square.is_normal() {
        let scale = 1.0 / square.sqrt();
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) * scale) as f32);
    } else {
        vector.fill(0.0);
        vector.iter_mut().take(1).for_each(|x| *x = 1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_known_counts() {
        assert_eq!(damped(Count::new(0, 1)), 1.0);
        assert!((damped(Count::new(0, 10)) - 3.302_585_1).abs() < 1e-6);
        assert_eq!(inverse_frequency(9, 9), 0.0);
        assert!((f64::from(inverse_frequency(99, 9)) - std::f64::consts::LN_10).abs() < 1e-6);
    }

    #[test]
    fn every_vector_has_length_one() {
        let mut vector = [3.0, 0.0, 4.0];
        normalise(&mut vector);
        assert_eq!(vector, [0.6, 0.0, 0.8]);
        for bad in [0.0, f32::NAN, f32::INFINITY] {
            let mut vector = [bad; 3];
            normalise(&mut vector);
            assert_eq!(vector, [1.0, 0.0, 0.0]);
        }
    }
}
