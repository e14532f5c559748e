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
    /// Weakens tokens made before (CTRL, arXiv 1909.05858, section 4.1): divides their logits where these are
    /// positive and multiplies them where not, so that both become less probable; 1 leaves them as they are.
    pub repetition_penalty: f32,
    /// Seed of the random numbers; the n-th choice of a sequence is a function of (seed, n).
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.8, top_p: 0.95, top_k: 0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Separates these draws from every other use of a seed.
const SAMPLING: u32 = u32::MAX;

/// The token behind those `made` before it. Ties go to the smaller token; logits that are not numbers count as
/// impossible.
pub fn sample(logits: &[f32], with: &Sampling, made: &[u32]) -> u32 {
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
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let Some(&(largest, first)) = order.first() else {
        return 0;
    };
    if with.temperature <= 0.0 || largest == f32::INFINITY {
        return first;
    }
    if with.top_k > 0 {
        order.truncate(with.top_k);
    }
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
    let mut left = f64::from(Stream::new(with.seed, SAMPLING, 0).uniform(made.len() as u64)) * total;
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

    /// Of choices behind 0 to 19,999 tokens, all of them `before`.
    fn shares_behind(before: u32, with: Sampling) -> [f64; 4] {
        let (mut counts, made) = ([0.0; 4], [before; 20_000]);
        for n in 0..made.len() {
            counts[sample(&LOGITS, &with, &made[..n]) as usize] += 1.0 / made.len() as f64;
        }
        counts
    }

    fn shares(with: Sampling) -> [f64; 4] {
        shares_behind(0, with)
    }

    #[test]
    fn temperature_zero_takes_the_first_largest() {
        assert_eq!(sample(&LOGITS, &Sampling { temperature: 0.0, ..Sampling::default() }, &[0; 7]), 1);
        assert_eq!(sample(&[f32::NAN, 0.0], &Sampling::default(), &[]), 1);
    }

    #[test]
    fn shares_follow_the_softmax() {
        let all = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.0, seed: 3 };
        let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        for (share, logit) in shares(all).into_iter().zip(LOGITS) {
            assert!((share - f64::from(logit).exp() / total).abs() < 0.015, "{share} at logit {logit}");
        }
    }

    #[test]
    fn cuts_leave_out_the_tail() {
        let all = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.0, seed: 3 };
        assert_eq!(
            shares(Sampling { top_k: 1, ..all })[1],
            shares(Sampling { top_k: 1, ..all }).iter().sum::<f64>()
        );
        let nucleus = shares(Sampling { top_p: 0.9, ..all });
        assert!(
            nucleus[0] == 0.0 && nucleus[3] == 0.0 && nucleus[1] > 0.4 && nucleus[2] > 0.4,
            "{nucleus:?}"
        );
    }
    #[test]
    fn tokens_made_before_are_less_probable() {
        let with = Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, repetition_penalty: 1.5, seed: 3 };
        // By hand: 3.0 becomes 2.0, and -2.0 becomes -3.0.
        for (token, logits) in
            [(1, [1.0, 2.0, 3.0, -2.0f64]), (3, [1.0, 3.0, 3.0, -3.0]), (7, [1.0, 3.0, 3.0, -2.0])]
        {
            let total: f64 = logits.iter().map(|l| l.exp()).sum();
            for (share, logit) in shares_behind(token, with).into_iter().zip(logits) {
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
