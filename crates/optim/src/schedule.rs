//! The learning rate as a share of its peak.

use crate::{OptimConfig, ScheduleKind};

/// Share of the peak rate at `step` (from 0) of `steps`.
pub fn rate_at(config: &OptimConfig, step: u64, steps: u64) -> f32 {
    let (step, steps) = (step as f64, steps.max(1) as f64);
    let warmup = (f64::from(config.warmup) * steps).round();
    if step < warmup {
        return ((step + 1.0) / warmup) as f32;
    }
    let last = f64::from(config.final_rate);
    let share = match config.schedule {
        ScheduleKind::Constant | ScheduleKind::Free => 1.0,
        ScheduleKind::Cosine => {
            let done = (step - warmup) / (steps - warmup).max(1.0);
            last + (1.0 - last) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
        }
        ScheduleKind::Wsd => {
            let decay = (f64::from(config.decay) * steps).max(1.0);
            let left = ((steps - step) / decay).min(1.0);
            last + (1.0 - last) * left
        }
    };
    share as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(schedule: ScheduleKind, step: u64) -> f32 {
        let config =
            OptimConfig { schedule, warmup: 0.1, decay: 0.2, final_rate: 0.1, ..OptimConfig::default() };
        rate_at(&config, step, 100)
    }

    #[test]
    fn every_schedule_warms_up_in_a_line() {
        for schedule in [ScheduleKind::Cosine, ScheduleKind::Wsd, ScheduleKind::Constant] {
            assert_eq!([0, 4, 9, 10].map(|step| at(schedule, step)), [0.1, 0.5, 1.0, 1.0]);
        }
    }

    #[test]
    fn each_schedule_ends_where_it_should() {
        assert_eq!(at(ScheduleKind::Constant, 99), 1.0);
        assert!((at(ScheduleKind::Cosine, 55) - 0.55).abs() < 1e-6);
        assert!((at(ScheduleKind::Cosine, 100) - 0.1).abs() < 1e-6);
        assert_eq!(at(ScheduleKind::Wsd, 80), 1.0);
        assert!((at(ScheduleKind::Wsd, 90) - 0.55).abs() < 1e-6);
    }

    #[test]
    fn a_run_without_steps_divides_by_nothing() {
        assert!(rate_at(&OptimConfig::default(), 0, 0).is_finite());
    }
}
