//! Prodigy finds the size of its steps, and the free schedule ends without a rate that falls: a bowl as a model.

use tritrain_backend::{Backend, Cpu, Memory, Stream, Weight};
use tritrain_optim::{DirectionKind, OptimConfig, Optimizer, Parameter, Rates, Role, ScheduleKind};

const LEN: usize = 64;

/// Distance to the bottom of a bowl after some steps, at rest, a share of that at the start. Gradients are disturbed by
/// chance, with deviations of `noise` times `scale`.
fn descend(config: &OptimConfig, scale: f32, rate: f32, steps: u64, noise: f32) -> f64 {
    let backend = Cpu::new(1).unwrap();
    let bottom: Vec<f32> = (0..LEN).map(|i| scale * ((i * 37 % 64) as f32 / 32.0 - 1.0)).collect();
    let mut weights = vec![Weight::Floats(backend.floats(LEN))];
    let tensor = Parameter { name: "w".into(), rows: 1, cols: LEN, role: Role::Embedding };
    let mut optimizer = Optimizer::new(&backend, config, vec![tensor], true, 1);
    let rates = Rates { matrices: rate, embedding: rate, radius: f32::INFINITY };
    let (mut gradient, mut here) = (backend.floats(LEN), vec![0.0; LEN]);
    for step in 0..steps {
        optimizer.wake(&backend, &mut weights);
        backend.download(weights[0].floats(), &mut here);
        let random = Stream::new(3, 1, step);
        let host = here.iter().zip(&bottom).zip(0..);
        let host: Vec<f32> = host.map(|((w, b), i)| w - b + noise * scale * random.normal(i)).collect();
        backend.upload(&host, &mut gradient);
        optimizer.begin(&backend);
        optimizer.direct(&backend, 0, &weights[0], &mut gradient, rates);
        optimizer.apply(&backend, 0, &mut weights[0], &gradient, rates);
    }
    optimizer.rest(&backend, &mut weights);
    backend.download(weights[0].floats(), &mut here);
    let norm = |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    let left = norm(&mut here.iter().zip(&bottom).map(|(w, b)| w - b));
    left / norm(&mut bottom.iter().copied())
}

#[test]
fn prodigy_reaches_the_bottom_however_far_it_is() {
    let config = OptimConfig { direction: DirectionKind::Prodigy, beta2: 0.999, ..OptimConfig::default() };
    for scale in [1e-3, 1.0, 1e3] {
        let left = descend(&config, scale, 1.0, 600, 0.0);
        assert!(left < 0.05, "a bowl of {scale}: {left} of the way is left");
    }
}

#[test]
fn means_of_points_are_nearer_than_the_last_point() {
    let constant = OptimConfig {
        direction: DirectionKind::Adamw,
        schedule: ScheduleKind::Constant,
        ..OptimConfig::default()
    };
    let free = OptimConfig { schedule: ScheduleKind::Free, ..constant.clone() };
    // The last point stays at its distance, the mean comes nearer with the steps.
    let [[early, last], [before, mean]] =
        [constant, free].map(|config| [500, 8000].map(|steps| descend(&config, 1.0, 0.05, steps, 2.0)));
    let found = format!("{before} and {mean} with means, {early} and {last} without");
    assert!(mean < 0.5 * before && mean < last / 3.0 && last > 0.5 * early, "{found}");
}
