//! The spike guard: a gradient that is out of proportion does not reach the state of its tensor as it is.
//!
//! For each tensor, the running mean and variance of the logarithm of its gradient's norm (ZClip, 2504.02507;
//! by tensor as AdaGC, 2502.11034, so that matrices may move during the backward pass). A norm more than
//! `optim.spike_z` deviations above the mean is a spike. The statistics then take a norm of two deviations above
//! it: one spike hardly moves them, and a lasting change is followed. The clipped norm itself, which is the mean,
//! would keep them where they are, and clip every step after such a change.
//!
//! The first norms say little about their spread, and one that is out of all proportion would stay in the second
//! moments of its tensor for a thousand steps: until the spread is known, thirty times the mean is a spike. The
//! statistics then take those thirty times: a gradient which truly grows a thousandfold is followed in a few steps.

use serde::{Deserialize, Serialize};

use crate::{OptimConfig, SpikeKind};

/// Norms of a tensor after which its own deviations say what a spike is.
const WATCHED: u64 = 25;
/// Before that, a spike begins at this many times the mean.
const EARLY: f64 = 30.0;
/// Weight of a new norm in the statistics; earlier, that of the mean of all.
const NEW: f64 = 0.03;
/// Least standard deviation of the logarithm: norms within a tenth are as good as equal.
const LEAST: f64 = 0.1;

/// Deviations above the mean of what the statistics take in place of a spike, at most.
const TAKEN: f64 = 2.0;

/// Norms of a tensor's gradient so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Norms {
    seen: u64,
    /// Of the logarithm.
    mean: f64,
    variance: f64,
}

/// The state of the guard. Part of the resume state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spikes {
    tensors: Vec<Norms>,
}

impl Spikes {
    /// Nothing seen of `tensors` tensors.
    pub(crate) fn new(tensors: usize) -> Spikes {
        Spikes { tensors: vec![Norms::default(); tensors] }
    }

    /// Tensors that it watches.
    pub(crate) fn len(&self) -> usize {
        self.tensors.len()
    }

    /// The largest norm of a gradient of tensor `id` that is no spike, and the norm that a spike is scaled to, or 0
    /// where it is left.
    pub(crate) fn limit(&self, config: &OptimConfig, id: usize) -> [f32; 2] {
        if config.spike == SpikeKind::Off {
            return [f32::MAX, 1.0];
        }
        let norms = &self.tensors[id];
        let limit = (norms.mean + norms.above(config)).exp() as f32;
        let usual = if config.spike == SpikeKind::Skip { 0.0 } else { norms.mean.exp() as f32 };
        [limit.min(f32::MAX), usual]
    }

    /// Takes up the norm of the gradient of tensor `id` as it was; `whole` where that was no spike.
    pub(crate) fn take(&mut self, config: &OptimConfig, id: usize, norm: f32, whole: bool) {
        // A gradient of zero says nothing about the others.
        if config.spike == SpikeKind::Off || !norm.is_finite() || norm == 0.0 {
            return;
        }
        let norms = &mut self.tensors[id];
        let log = f64::from(norm).ln();
        norms.take(if whole { log } else { norms.mean + norms.taken(config) });
    }
}

impl Norms {
    /// How far above the mean the logarithm of a spike is, at least.
    fn above(&self, config: &OptimConfig) -> f64 {
        match self.seen {
            0 => f64::INFINITY,
            1..WATCHED => EARLY.ln(),
            _ => f64::from(config.spike_z) * self.deviation(),
        }
    }

    /// How far above the mean a spike is taken to be.
    fn taken(&self, config: &OptimConfig) -> f64 {
        match self.seen {
            0..WATCHED => EARLY.ln(),
            _ => f64::from(config.spike_z).min(TAKEN) * self.deviation(),
        }
    }

    fn deviation(&self) -> f64 {
        self.variance.sqrt().max(LEAST)
    }

    fn take(&mut self, log: f64) {
        self.seen += 1;
        let weight = NEW.max(1.0 / self.seen as f64);
        let difference = log - self.mean;
        self.mean += weight * difference;
        self.variance = (1.0 - weight) * (self.variance + weight * difference * difference);
    }
}

#[cfg(test)]
mod tests {
    use tritrain_backend::{Admission, Backend, Cpu, Memory};

    use super::*;

    /// What becomes of a gradient.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fate {
        Whole,
        Clipped(f32),
        Left,
    }

    fn admit(spikes: &mut Spikes, config: &OptimConfig, id: usize, norm: f32) -> Fate {
        let (backend, tensors) = (Cpu::new(1).unwrap(), spikes.len());
        let mut statistics = vec![0.0; 1 + tensors];
        statistics[1 + id] = norm * norm;
        let limits: Vec<f32> = (0..tensors).flat_map(|id| spikes.limit(config, id)).collect();
        let (mut of, mut given) = (backend.floats(1 + tensors), backend.floats(2 * tensors));
        backend.upload(&statistics, &mut of);
        backend.upload(&limits, &mut given);
        let mut gates = backend.floats(2 * tensors);
        let alone = config.spike != SpikeKind::Off;
        let with = Admission { loss: 0, squares: 1, share: 1.0, alone, tensors: id..id + 1 };
        backend.admit(&of, &given, &with, &mut gates);
        let gate = backend.host(&gates)[id];
        spikes.take(config, id, norm, gate == 1.0);
        match gate {
            1.0 => Fate::Whole,
            0.0 => Fate::Left,
            share => Fate::Clipped(share),
        }
    }

    fn config(spike: SpikeKind) -> OptimConfig {
        OptimConfig { spike, spike_z: 4.0, ..OptimConfig::default() }
    }

    /// Norms around one, within a factor of 1.2.
    fn quiet(step: u64) -> f32 {
        1.2f32.powf(((step * 7919) % 101) as f32 / 50.0 - 1.0)
    }

    fn watched(config: &OptimConfig) -> Spikes {
        let mut spikes = Spikes::new(2);
        for step in 0..100 {
            assert_eq!(admit(&mut spikes, config, 1, quiet(step)), Fate::Whole, "step {step}");
        }
        spikes
    }

    #[test]
    fn a_spike_is_scaled_to_the_usual_norm_and_leaves_the_statistics_alone() {
        let config = config(SpikeKind::Clip);
        let mut spikes = watched(&config);
        let Fate::Clipped(share) = admit(&mut spikes, &config, 1, 1000.0) else { panic!("taken") };
        assert!((0.9..1.1).contains(&(share * 1000.0)), "{share}");
        assert!(matches!(admit(&mut spikes, &config, 1, 2.0), Fate::Clipped(_)), "still known");
        for step in 0..100 {
            assert_eq!(admit(&mut spikes, &config, 1, quiet(step)), Fate::Whole, "step {step}");
        }
        // Small norms are no spikes, and the other tensor has seen nothing.
        assert_eq!(admit(&mut spikes, &config, 1, 1e-6), Fate::Whole);
        assert_eq!(admit(&mut spikes, &config, 0, 1000.0), Fate::Whole);
    }

    #[test]
    fn a_tensor_is_left_where_so_asked_or_where_nothing_is_finite() {
        let config = config(SpikeKind::Skip);
        let mut spikes = watched(&config);
        assert_eq!(admit(&mut spikes, &config, 1, 1000.0), Fate::Left);
        let before = spikes.clone();
        for norm in [f32::NAN, f32::INFINITY] {
            assert_eq!(admit(&mut spikes, &config, 1, norm), Fate::Left);
        }
        assert_eq!(spikes, before);
        let off = super::tests::config(SpikeKind::Off);
        assert_eq!(admit(&mut spikes, &off, 1, 1e9), Fate::Whole);
    }

    #[test]
    fn among_the_first_norms_one_out_of_all_proportion_is_a_spike() {
        for kind in [SpikeKind::Clip, SpikeKind::Skip] {
            let config = config(kind);
            for at in 1..WATCHED {
                let mut spikes = Spikes::new(1);
                for step in 0..100 {
                    let (norm, is_spike) = match step == at {
                        true => (1000.0, true),
                        // As gradients of the first steps do, within a factor of ten.
                        false => (quiet(step) * 10.0f32.powf((step % 3) as f32 / 2.0 - 0.5), false),
                    };
                    match admit(&mut spikes, &config, 0, norm) {
                        Fate::Whole => assert!(!is_spike, "{step}"),
                        Fate::Clipped(share) => {
                            assert!(is_spike && kind == SpikeKind::Clip, "{step}");
                            assert!((0.2..5.0).contains(&(share * norm)), "{share} at {step}");
                        }
                        Fate::Left => assert!(is_spike && kind == SpikeKind::Skip, "{step}"),
                    }
                }
                assert_ne!(admit(&mut spikes, &config, 0, 1000.0), Fate::Whole, "still known after {at}");
            }
        }
    }

    #[test]
    fn a_gradient_that_grows_a_thousandfold_at_first_is_followed_in_a_few_steps() {
        let config = config(SpikeKind::Clip);
        let mut spikes = Spikes::new(1);
        admit(&mut spikes, &config, 0, 1e-3);
        let clipped = (0..100).filter(|step| admit(&mut spikes, &config, 0, quiet(*step)) != Fate::Whole);
        let clipped = clipped.count();
        assert!((1..6).contains(&clipped), "{clipped} steps");
    }

    #[test]
    fn a_lasting_change_is_followed() {
        let config = config(SpikeKind::Clip);
        let mut spikes = watched(&config);
        let clipped =
            (0..200).filter(|step| admit(&mut spikes, &config, 1, 1000.0 * quiet(*step)) != Fate::Whole);
        let clipped = clipped.count();
        assert!((20..100).contains(&clipped), "{clipped} steps");
    }

    #[test]
    fn every_second_step_may_be_a_spike_for_long() {
        let config = config(SpikeKind::Clip);
        let mut spikes = watched(&config);
        for step in 0..40 {
            assert!(matches!(admit(&mut spikes, &config, 1, 1e6), Fate::Clipped(_)), "step {step}");
            assert_eq!(admit(&mut spikes, &config, 1, quiet(step)), Fate::Whole, "step {step}");
        }
    }
}
