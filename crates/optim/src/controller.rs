//! The controller: what steps measured becomes a multiplier of the learning rate and a trust-region radius.
//!
//! For each cluster of rows, six [inputs](Signals) without a scale go through a network of 146 weights, a rule
//! or a random choice, and come out as two numbers in [-1, 1]. The first becomes the multiplier:
//!
//! ```text
//! pace      = max(0.05, 1/n)                             in the n-th decision
//! wanted    = home + ln 4 · output₀                      at most 4 times, at least a quarter of home
//! log m    += wanted - log m, at most the pace either way
//! log home += pace · (log m - log home)                  within ln 16 either way
//! ```
//!
//! So one decision stays within [1/4, 4] of a base that moves slowly; a base rate that is wrong by up to 16
//! is made up for while the output keeps pointing there, and `m` itself stays within [1/64, 64]. The limits are
//! wide in the first steps, while the schedule warms up: ten of them make up for 16, at 0.05 it would take 60.
//! The second output is the log of the radius relative to the configured one, within ln 4. Where steps are
//! [compared](Controller::hear) with what their gradients predicted, a factor for all clusters comes on top, as in
//! methods with a trust region (Conn, Gould and Toint, 2000, section 6.1): down where a step took off less than a
//! quarter of that, up where more than three quarters, within ln 4 either way.
//!
//! A decision is a function of this state and the signals. All of it is in checkpoints, the network included:
//! a run goes on with the weights that it began with.

mod inputs;
mod network;

use serde::{Deserialize, Serialize};
use tritrain_backend::Stream;

pub use inputs::{RATIO, Signals};
pub use network::{INPUTS, Network, NetworkError, OUTPUTS, WEIGHTS};

use crate::{ControllerKind, Steer};
use inputs::{History, cluster_input};

/// `ln 4`: how far a decision goes from home, and a radius from the configured one.
const REACH: f64 = 2.0 * std::f64::consts::LN_2;
/// `ln 16`: how far home goes.
const HOME: f64 = 4.0 * std::f64::consts::LN_2;
/// The most that the log of a multiplier moves in a step, and the share of the way to it that its home moves;
/// in the first steps both are 1, 1/2, 1/3.. instead.
const PACE: f64 = 0.05;
/// `ln 1.25`: how far one comparison moves the radius.
const TRUST: f64 = 0.223_143_551_314_209_76;
/// Purpose of the random numbers drawn here, apart from those of tensors.
const RANDOM: u32 = u32::from_be_bytes(*b"ctrl");

/// What the controller says for a cluster. The default changes nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Decision {
    /// Log of what the scheduled learning rate is multiplied by.
    pub log_multiplier: f64,
    /// Log of what the configured radius is multiplied by.
    pub log_radius: f64,
}

impl Decision {
    /// What the scheduled learning rate is multiplied by.
    pub fn multiplier(&self) -> f32 {
        libm::exp(self.log_multiplier) as f32
    }

    /// What the configured radius is multiplied by.
    pub fn radius(&self) -> f32 {
        libm::exp(self.log_radius) as f32
    }

    /// This decision for some rows, where all move as `mean` says.
    pub fn beside(&self, mean: &Decision) -> Steer {
        let less = Decision {
            log_multiplier: self.log_multiplier - mean.log_multiplier,
            log_radius: self.log_radius - mean.log_radius,
        };
        Steer { rate: less.multiplier(), radius: less.radius() }
    }
}

/// Where a cluster stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Track {
    log_multiplier: f64,
    log_home: f64,
    log_radius: f64,
}

impl Track {
    fn follow(&mut self, [rate, radius]: [f64; OUTPUTS], pace: f64) {
        let wanted = self.log_home + REACH * rate;
        self.log_multiplier += (wanted - self.log_multiplier).clamp(-pace, pace);
        let home = self.log_home + pace * (self.log_multiplier - self.log_home);
        self.log_home = home.clamp(-HOME, HOME);
        self.log_radius = REACH * radius;
    }
}

/// Who decides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Policy {
    Rule,
    Network(Network),
    /// Draws from this seed.
    Random(u64),
}

/// A controller and everything it knows of a run. Part of the resume state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Controller {
    policy: Policy,
    history: History,
    /// Decisions made.
    steps: u64,
    /// By cluster of rows.
    tracks: Vec<Track>,
    /// Log of what comparisons have made of the radius.
    #[serde(default)]
    log_trust: f64,
}

/// What a step did to the loss of its own batch, in nats per token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reduction {
    /// By its gradient, for the step as applied.
    pub predicted: f64,
    /// Loss before less loss after.
    pub actual: f64,
}

impl Controller {
    /// The controller of a run at its start, with as many decisions as there are clusters of rows; none where it
    /// is off. `network` is asked for where it decides.
    ///
    /// # Errors
    /// Those of `network`.
    pub fn new<E>(
        kind: ControllerKind,
        seed: u64,
        clusters: usize,
        network: impl FnOnce() -> Result<Network, E>,
    ) -> Result<Option<Controller>, E> {
        let policy = match kind {
            ControllerKind::Off => return Ok(None),
            ControllerKind::Rule => Policy::Rule,
            ControllerKind::Learned => Policy::Network(network()?),
            ControllerKind::Random => Policy::Random(seed),
        };
        let tracks = vec![Track::default(); clusters.max(1)];
        Ok(Some(Controller { policy, history: History::default(), steps: 0, tracks, log_trust: 0.0 }))
    }

    /// Takes in what a step measured; decides about the next one. `ratios` is for each cluster the norm of its
    /// update over that of its weights, before rounding and bound. A number of clusters that changed begins
    /// again from the mean of those before.
    ///
    /// # Panics
    /// `ratios` is empty.
    pub fn decide(&mut self, signals: &Signals, ratios: &[f64]) {
        assert!(!ratios.is_empty(), "at least one cluster");
        let mut inputs = self.history.push(signals);
        if self.tracks.len() != ratios.len() {
            let mean = self.mean_track();
            self.tracks.clear();
            self.tracks.resize(ratios.len(), mean);
        }
        let pace = PACE.max(1.0 / (self.steps + 1) as f64);
        for (cluster, (track, ratio)) in self.tracks.iter_mut().zip(ratios).enumerate() {
            inputs[2] = cluster_input(*ratio, signals.share);
            let outputs = match &self.policy {
                Policy::Rule => rule(&inputs),
                Policy::Network(network) => network.outputs(&inputs),
                Policy::Random(seed) => {
                    let draw = Stream::new(*seed, RANDOM, self.steps).block(cluster as u64);
                    [draw[0], draw[1]].map(|bits| f64::from(bits) / f64::from(1u32 << 31) - 1.0)
                }
            };
            track.follow(outputs, pace);
        }
        self.steps += 1;
    }

    /// Moves the radius by what became of a step. One against its own gradient, as momentum may make it, tells
    /// nothing.
    pub fn hear(&mut self, reduction: &Reduction) {
        let Reduction { predicted, actual } = *reduction;
        if predicted > 0.0 && predicted.is_finite() {
            let kept = actual / predicted;
            // A loss that is no number any more counts as a bad step.
            let by = if kept > 0.75 {
                TRUST
            } else if kept >= 0.25 {
                0.0
            } else {
                -TRUST
            };
            self.log_trust = (self.log_trust + by).clamp(-REACH, REACH);
        }
    }

    /// The decision about each cluster for the next step.
    pub fn decisions(&self) -> impl Iterator<Item = Decision> {
        self.tracks.iter().map(|track| self.decision(track))
    }

    /// The mean decision (of logs), for what is in no cluster.
    pub fn mean(&self) -> Decision {
        self.decision(&self.mean_track())
    }

    fn decision(&self, track: &Track) -> Decision {
        let &Track { log_multiplier, log_radius, .. } = track;
        Decision { log_multiplier, log_radius: log_radius + self.log_trust }
    }

    fn mean_track(&self) -> Track {
        let of = |part: fn(&Track) -> f64| {
            self.tracks.iter().map(part).sum::<f64>() / self.tracks.len().max(1) as f64
        };
        Track {
            log_multiplier: of(|t| t.log_multiplier),
            log_home: of(|t| t.log_home),
            log_radius: of(|t| t.log_radius),
        }
    }
}

/// The rule: hold the ratio of update to weight at [`RATIO`] times the schedule's share; less while the loss
/// rises and after a gradient that is out of the ordinary, for which the radius shrinks as well.
fn rule(&[_, score, cluster, trend, ..]: &[f64; INPUTS]) -> [f64; OUTPUTS] {
    let alarm = (score - 2.0).max(0.0);
    let rate = -cluster / REACH - 0.5 * trend.max(0.0) - 0.5 * alarm;
    [rate.clamp(-1.0, 1.0), -alarm]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn controller(kind: ControllerKind, clusters: usize) -> Controller {
        Controller::new(kind, 7, clusters, Network::shipped).unwrap().unwrap()
    }

    const KINDS: [ControllerKind; 3] =
        [ControllerKind::Rule, ControllerKind::Learned, ControllerKind::Random];

    /// A network that always says the same, in full.
    fn stubborn(sign: f32) -> Controller {
        let mut weights = vec![0.0; WEIGHTS];
        weights[WEIGHTS - OUTPUTS..].fill(sign * 100.0);
        let network = || Network::try_from(weights);
        Controller::new(ControllerKind::Learned, 0, 1, network).unwrap().unwrap()
    }

    const CALM: Signals = Signals { loss: 3.0, gradient_norm: 0.5, share: 1.0, done: 0.5 };

    #[test]
    fn off_is_no_controller_and_asks_for_no_network() {
        let none = Controller::new(ControllerKind::Off, 1, 1, || Err(()));
        assert_eq!(none, Ok(None));
        assert_eq!((Decision::default().multiplier(), Decision::default().radius()), (1.0, 1.0));
    }

    proptest! {
        #[test]
        fn whatever_it_sees_it_keeps_its_bounds(
            seen in proptest::collection::vec(
                (0.0..1e30f64, 0.0..1e30f64, 0.0..1.0f64, 0.0..=1.0f64, proptest::collection::vec(0.0..1e9f64, 3)),
                1..200,
            ),
        ) {
            for kind in KINDS {
                let mut controller = controller(kind, 3);
                for (n, (loss, gradient_norm, share, done, ratios)) in (1..).zip(&seen) {
                    let (loss, gradient_norm, share, done) = (*loss, *gradient_norm, *share, *done);
                    let before = controller.tracks.clone();
                    controller.decide(&Signals { loss, gradient_norm, share, done }, ratios);
                    for (track, before) in controller.tracks.iter().zip(before) {
                        let moved = track.log_multiplier - before.log_multiplier;
                        let pace = PACE.max(1.0 / f64::from(n));
                        prop_assert!(moved.abs() <= pace * (1.0 + 1e-12), "{moved} in decision {n}");
                        prop_assert!(track.log_home.abs() <= HOME);
                        prop_assert!(track.log_multiplier.abs() <= HOME + REACH);
                        prop_assert!(track.log_radius.abs() <= REACH);
                        prop_assert!((track.log_multiplier - before.log_home).abs() <= REACH + 1e-12);
                    }
                }
            }
        }
    }

    #[test]
    fn a_base_wrong_by_sixteen_is_made_up_for_in_ten_steps() {
        for sign in [-1.0, 1.0] {
            let mut controller = stubborn(sign);
            let target = f64::from(sign) * 16f64.ln();
            let reached = (1..).find(|_| {
                controller.decide(&CALM, &[RATIO]);
                controller.mean().log_multiplier / target >= 1.0
            });
            assert!(reached.unwrap() <= 10, "{reached:?}");
            for _ in 0..2000 {
                controller.decide(&CALM, &[RATIO]);
            }
            let end = controller.mean();
            assert!((end.multiplier() / 64f32.powf(sign) - 1.0).abs() < 1e-3, "{end:?}");
            assert!((end.radius() / 4f32.powf(sign) - 1.0).abs() < 1e-6, "{end:?}");
        }
    }

    /// In a world where the ratio is the base rate times the multiplier, the rule finds the ratio it holds.
    #[test]
    fn the_rule_holds_its_ratio_whatever_the_base() {
        for base in [1.0 / 16.0, 0.25, 1.0, 4.0, 16.0] {
            let mut controller = controller(ControllerKind::Rule, 1);
            let mut ratio = 0.0;
            for _ in 0..400 {
                ratio = RATIO * base * f64::from(controller.mean().multiplier());
                controller.decide(&CALM, &[ratio]);
            }
            assert!((ratio / RATIO).ln().abs() < 0.01, "base {base}: {ratio}");
        }
    }

    #[test]
    fn the_radius_follows_what_steps_keep_of_what_they_promise() {
        let mut controller = controller(ControllerKind::Rule, 2);
        let radius = |controller: &Controller| controller.mean().radius();
        let good = Reduction { predicted: 0.1, actual: 0.09 };
        let bad = Reduction { predicted: 0.1, actual: -0.05 };
        controller.hear(&Reduction { predicted: 0.1, actual: 0.05 });
        controller.hear(&Reduction { predicted: -0.1, actual: 0.05 });
        controller.hear(&Reduction { predicted: f64::NAN, actual: 0.05 });
        assert_eq!(radius(&controller), 1.0);
        controller.hear(&bad);
        assert!((radius(&controller) - 0.8).abs() < 1e-6);
        controller.hear(&good);
        assert!((radius(&controller) - 1.0).abs() < 1e-6, "what was done is undone");
        (0..100).for_each(|_| controller.hear(&good));
        assert!((radius(&controller) - 4.0).abs() < 1e-5);
        (0..100).for_each(|_| controller.hear(&Reduction { predicted: 0.1, actual: f64::NAN }));
        assert!((radius(&controller) - 0.25).abs() < 1e-6);
        assert_eq!(controller.mean().multiplier(), 1.0, "rates are left alone");
        let all: Vec<Decision> = controller.decisions().collect();
        assert_eq!(all, [controller.mean(); 2]);
    }

    #[test]
    fn clusters_are_decided_about_apart() {
        let mut controller = controller(ControllerKind::Rule, 2);
        (0..20).for_each(|_| controller.decide(&CALM, &[RATIO * 8.0, RATIO / 8.0]));
        let decisions: Vec<Decision> = controller.decisions().collect();
        assert!(decisions[0].log_multiplier < -0.5 && decisions[1].log_multiplier > 0.5);
        assert!(controller.mean().log_multiplier.abs() < 1e-12);
        controller.decide(&CALM, &[RATIO; 3]);
        assert_eq!(controller.decisions().count(), 3);
        assert!(controller.decisions().all(|decision| decision.log_multiplier.abs() < 1e-12));
    }

    #[test]
    fn a_controller_that_was_saved_goes_on_the_same() {
        for kind in KINDS {
            let mut whole = controller(kind, 2);
            let signals = |step: u32| Signals {
                loss: 5.0 / f64::from(step + 1) + f64::from(step * 7 % 5),
                gradient_norm: 0.1 + f64::from(step * 11 % 13),
                share: 1.0 / f64::from(step + 1),
                done: f64::from(step) / 60.0,
            };
            let mut saved = whole.clone();
            for step in 0..60 {
                let text = serde_json::to_string(&saved).unwrap();
                saved = serde_json::from_str(&text).unwrap();
                for controller in [&mut whole, &mut saved] {
                    controller.decide(&signals(step), &[1e-3 * f64::from(step), 0.02]);
                }
                assert_eq!(whole, saved, "step {step}");
            }
        }
    }
}
