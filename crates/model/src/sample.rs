//! Choosing the next token from logits.

use tritrain_trit::rng::Stream;

/// How to choose.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the largest.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the most probable tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps tokens at least this share as probable as the most probable one (arXiv 2407.01082, section 3); 0 keeps
    /// all.
    pub min_p: f32,
    /// Weakens tokens made before (CTRL, arXiv 1909.05858, section 4.1): divides their logits where these are
    /// positive and multiplies them where not, so that both become less probable; 1 leaves them as they are.
    pub repetition_penalty: f32,
    /// Seed of the random numbers; the n-th choice of a sequence is a function of (seed, sequence, n).
    pub seed: u64,
    /// Number of the sequence among those that are continued together.
    pub sequence: u32,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 0.8,
            top_p: 0.95,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            sequence: 0,
        }
    }
}

/// Separates these draws from every other use of a seed.
const SAMPLING: u32 = u32::MAX;

/// The token behind those `made` before it: from what the penalty leaves of the logits, divided by the temperature,
/// top-k, of these top-p, of these min-p, in the order of transformers. Ties go to the smaller token; logits that are
/// not numbers count as impossible.
pub fn sample(logits: &[f32], with: &Sampling, made: &[u32]) -> u32 {
    let by_logit = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    let mut order: Vec<(f32, u32)> = (0..).zip(logits).map(|(token, logit)| (*logit, token)).collect();
    if with.repetition_penalty != 1.0 {
        let mut repeated = made.to_vec();
        repeated.sort_unstable();
        repeated.dedup();
        for token in repeated {
            if let Some((logit, _)) = order.get_mut(token as usize) {
                let penalty = with.repetition_penalty;
                *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            }
        }
    }
    order.retain(|(logit, _)| !logit.is_nan());
    let Some(&(largest, first)) = order.iter().min_by(|a, b| by_logit(a, b)) else {
        return 0;
    };
    if with.temperature <= 0.0 || largest == f32::INFINITY {
        return first;
    }
    if (1..order.len()).contains(&with.top_k) {
        order.select_nth_unstable_by(with.top_k - 1, by_logit);
        order.truncate(with.top_k);
    }
    order.sort_unstable_by(by_logit);
    let weight = |logit: f32| f64::from((logit - largest) / with.temperature).exp();
    let mut total: f64 = order.iter().map(|(logit, _)| weight(*logit)).sum();
    if with.top_p < 1.0 {
        let bound = total * f64::from(with.top_p);
        let (mut sum, mut kept) = (0.0, 0);
        while kept < order.len() && (kept == 0 || sum < bound) {
            sum += weight(order[kept].0);
            kept += 1;
        }
        order.truncate(kept);
        total = sum;
    }
    if with.min_p > 0.0 {
        order.retain(|(logit, _)| weight(*logit) >= f64::from(with.min_p));
        total = order.iter().map(|(logit, _)| weight(*logit)).sum();
    }
    let mut left =
        f64::from(Stream::new(with.seed, SAMPLING, u64::from(with.sequence)).uniform(made.len() as u64))
            * total;
    for (logit, token) in &order {
        left -= weight(*logit);
        if left < 0.0 {
            return *token;
        }
    }
    order.last().map_or(first, |(_, token)| *token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 4] = [1.0, 3.0, 3.0, -2.0];
    const ALL: Sampling = Sampling {
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        seed: 3,
        sequence: 0,
    };

    /// Of choices behind 0 to 19,999 tokens, all of them `before`.
    fn shares_behind(before: u32, logits: &[f32], with: Sampling) -> Vec<f64> {
        let (mut counts, made) = (vec![0.0; logits.len()], [before; 20_000]);
        for n in 0..made.len() {
            counts[sample(logits, &with, &made[..n]) as usize] += 1.0 / made.len() as f64;
        }
        counts
    }

    #[test]
    fn temperature_zero_takes_the_first_largest() {
        assert_eq!(sample(&LOGITS, &Sampling { temperature: 0.0, ..Sampling::default() }, &[0; 7]), 1);
        assert_eq!(sample(&[f32::NAN, 0.0], &Sampling::default(), &[]), 1);
    }

    /// Softmax of logits over a temperature, of those tokens that `kept` says, by their definitions.
    fn check(logits: &[f32], with: Sampling, kept: &[bool]) {
        let weight = |at: usize| (f64::from(logits[at]) / f64::from(with.temperature)).exp();
        let total: f64 = (0..logits.len()).filter(|at| kept[*at]).map(weight).sum();
        for (at, share) in shares_behind(0, logits, with).into_iter().enumerate() {
            let expected = if kept[at] { weight(at) / total } else { 0.0 };
            assert!((share - expected).abs() < 0.015, "token {at}: {share} not {expected} of {with:?}");
            assert!(kept[at] || share == 0.0, "token {at} of {with:?}");
        }
    }

    #[test]
    fn shares_follow_the_softmax() {
        check(&LOGITS, ALL, &[true; 4]);
        check(&LOGITS, Sampling { temperature: 2.5, ..ALL }, &[true; 4]);
        check(&LOGITS, Sampling { sequence: 9, ..ALL }, &[true; 4]);
    }

    /// Probabilities 0.5, 0.25, 0.15, 0.0625, 0.0375.
    #[test]
    fn cuts_keep_what_their_definitions_say() {
        let p = [0.15f32, 0.5, 0.0375, 0.25, 0.0625];
        let logits = p.map(f32::ln);
        let kept = |with: Sampling, least: f32| check(&logits, with, &p.map(|p| p >= least));
        kept(Sampling { top_k: 1, ..ALL }, 0.5);
        kept(Sampling { top_k: 3, ..ALL }, 0.15);
        kept(Sampling { top_k: 5, ..ALL }, 0.0);
        kept(Sampling { top_k: 9, ..ALL }, 0.0);
        kept(Sampling { top_p: 0.49, ..ALL }, 0.5);
        kept(Sampling { top_p: 0.74, ..ALL }, 0.25);
        kept(Sampling { top_p: 0.76, ..ALL }, 0.15);
        // Of three tokens with 0.9 in all, 0.75 of them are two: 0.675 of the whole.
        kept(Sampling { top_k: 3, top_p: 0.75, ..ALL }, 0.25);
        kept(Sampling { min_p: 0.1, ..ALL }, 0.0625);
        kept(Sampling { min_p: 0.29, ..ALL }, 0.15);
        kept(Sampling { min_p: 1.0, ..ALL }, 0.5);
        // After the temperature: the square roots are as 1 to 0.707, 0.548, 0.354, 0.274.
        kept(Sampling { min_p: 0.3, temperature: 2.0, ..ALL }, 0.0625);
        kept(Sampling { min_p: 0.1, top_p: 0.76, ..ALL }, 0.15);
    }

    #[test]
    fn a_choice_is_a_function_of_seed_sequence_and_place() {
        let choices =
            |with: Sampling| (0..64).map(|n| sample(&LOGITS, &with, &[0; 64][..n])).collect::<Vec<_>>();
        assert_eq!(choices(ALL), choices(ALL));
        assert_ne!(choices(ALL), choices(Sampling { seed: 4, ..ALL }));
        assert_ne!(choices(ALL), choices(Sampling { sequence: 1, ..ALL }));
    }

    #[test]
    fn tokens_made_before_are_less_probable() {
        let with = Sampling { repetition_penalty: 1.5, ..ALL };
        // By hand: 3.0 becomes 2.0, and -2.0 becomes -3.0.
        for (token, logits) in
            [(1, [1.0, 2.0, 3.0, -2.0f64]), (3, [1.0, 3.0, 3.0, -3.0]), (7, [1.0, 3.0, 3.0, -2.0])]
        {
            let total: f64 = logits.iter().map(|l| l.exp()).sum();
            for (share, logit) in shares_behind(token, &LOGITS, with).into_iter().zip(logits) {
                assert!((share - logit.exp() / total).abs() < 0.015, "{share} at {logit} behind {token}");
            }
        }
        let greedy = Sampling { temperature: 0.0, ..with };
        assert_eq!(
            [&[][..], &[1], &[1, 2, 1], &[1, 2, 0]].map(|made| sample(&LOGITS, &greedy, made)),
            [1, 2, 1, 1]
        );
    }
}
