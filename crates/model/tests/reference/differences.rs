//! Every gradient against central differences.

use tritrain_backend::NO_TARGET;
use tritrain_model::reference::Arithmetic;

use crate::case::*;

/// What the checker found.
#[derive(Default)]
struct Findings {
    /// Largest relative error and where.
    worst: (f64, String),
    /// Comparisons made, and given up at a kink of relu².
    compared: usize,
    kinks: usize,
}

impl Findings {
    /// Compares `gradient·direction` with the difference quotient along the unit vector `direction`.
    ///
    /// Relative error: `|g - fd| / max(|g|, |fd|, 1e-3·‖gradient of the tensor‖, LEAST)`, 0 where both are 0.
    fn compare(&mut self, case: &Case, tensor: usize, gradient: &[f64], direction: &[f64]) {
        let Some(difference) = case.difference(tensor, direction) else {
            self.kinks += 1;
            return;
        };
        let derivative = dot(gradient, direction);
        let size = derivative.abs().max(difference.abs()).max(1e-3 * length(gradient)).max(LEAST);
        let error = if derivative == difference { 0.0 } else { (derivative - difference).abs() / size };
        let error = if error.is_nan() { f64::INFINITY } else { error };
        self.compared += 1;
        if error > self.worst.0 {
            let name = &case.layout.specs[tensor].name;
            self.worst = (error, format!("{name}: {derivative:e} against {difference:e}, {:?}", case.config));
        }
    }

    /// Along the gradient, along `count` random directions and along `count` random axes of a tensor.
    fn sample(&mut self, case: &Case, tensor: usize, gradient: &[f64], count: usize, random: &mut Random) {
        let len = gradient.len();
        if length(gradient) > 0.0 {
            self.compare(case, tensor, gradient, &unit(gradient.to_vec()));
        }
        for _ in 0..count {
            self.compare(case, tensor, gradient, &unit(random.normals(len)));
            self.compare(case, tensor, gradient, &axis(len, random.range(0, len - 1)));
        }
    }
}

fn axis(len: usize, at: usize) -> Vec<f64> {
    let mut direction = vec![0.0; len];
    direction[at] = 1.0;
    direction
}

const BOUND: f64 = 1e-6;

/// Differences of losses are known to 1e-12 of it: some tensors have gradients of 1e-9.
const LEAST: f64 = 2e-6;

#[test]
fn gradients_are_central_differences_over_100_shapes() {
    let mut found = Findings::default();
    let mut random = Random(1);
    for seed in 0..100 {
        let case = Case::random(seed);
        for (tensor, gradient) in case.gradients(Arithmetic::Exact).iter().enumerate() {
            let before = found.compared;
            found.sample(&case, tensor, gradient, 2, &mut random);
            assert!(
                found.compared > before,
                "{}: every direction met a kink",
                case.layout.specs[tensor].name
            );
        }
    }
    println!("{} comparisons, {} at kinks, worst {:?}", found.compared, found.kinks, found.worst);
    assert!(found.worst.0 <= BOUND, "{:?}", found.worst);
    assert!(found.compared > 5000 && found.kinks * 10 < found.compared);
}

#[test]
fn every_entry_of_small_models_is_a_central_difference() {
    let mut found = Findings::default();
    for case in (1000..1100).map(Case::random).filter(|case| case.layout.parameters() < 250) {
        for (tensor, gradient) in case.gradients(Arithmetic::Exact).iter().enumerate() {
            for at in 0..gradient.len() {
                found.compare(&case, tensor, gradient, &axis(gradient.len(), at));
            }
        }
    }
    println!("{} comparisons, {} at kinks, worst {:?}", found.compared, found.kinks, found.worst);
    assert!(found.worst.0 <= BOUND, "{:?}", found.worst);
    assert!(found.compared > 2000 && found.kinks * 10 < found.compared);
}

/// With a part of the targets left out, gradients are those of the mean over the others; a position without a target
/// has the same ones whatever its target would have been.
#[test]
fn gradients_of_some_targets_are_central_differences() {
    let mut found = Findings::default();
    let mut random = Random(2);
    for seed in 0..40 {
        let mut case = Case::random(seed);
        let counts: Vec<bool> = case.targets.iter().map(|_| random.flip()).collect();
        for (target, counts) in case.targets.iter_mut().zip(counts) {
            if !counts {
                *target = NO_TARGET;
            }
        }
        let gradients = case.gradients(Arithmetic::Exact);
        if case.targets.iter().all(|target| *target == NO_TARGET) {
            assert!(gradients.iter().flatten().all(|g| *g == 0.0));
            continue;
        }
        for (tensor, gradient) in gradients.iter().enumerate() {
            found.sample(&case, tensor, gradient, 2, &mut random);
        }
    }
    println!("{} comparisons, {} at kinks, worst {:?}", found.compared, found.kinks, found.worst);
    assert!(found.worst.0 <= BOUND, "{:?}", found.worst);
    assert!(found.compared > 1000 && found.kinks * 10 < found.compared);
}

/// The checker must be able to fail: every tensor's gradient, wrong in one way, is found out.
#[test]
fn checker_finds_wrong_gradients() {
    type Mutation = (&'static str, fn(&mut [f64]));
    let mutations: [Mutation; 5] = [
        ("scaled by 1.001", |g| g.iter_mut().for_each(|v| *v *= 1.001)),
        ("scaled by 1.00001", |g| g.iter_mut().for_each(|v| *v *= 1.00001)),
        ("sign turned", |g| g.iter_mut().for_each(|v| *v = -*v)),
        ("largest entry dropped", |g| {
            *g.iter_mut().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap() = 0.0
        }),
        ("not a number", |g| g[0] = f64::NAN),
    ];
    for seed in [3, 4, 5] {
        let case = Case::random(seed);
        for (tensor, gradient) in case.gradients(Arithmetic::Exact).iter().enumerate() {
            for (name, mutate) in mutations {
                let mut wrong = gradient.clone();
                mutate(&mut wrong);
                let mut found = Findings::default();
                found.sample(&case, tensor, &wrong, 3, &mut Random(seed));
                let passed = found.worst.0 <= BOUND;
                assert!(!passed, "{} {name}: {:?}", case.layout.specs[tensor].name, found.worst);
            }
            let mut found = Findings::default();
            found.sample(&case, tensor, gradient, 3, &mut Random(seed));
            assert!(found.worst.0 <= BOUND, "{:?}", found.worst);
        }
    }
}
