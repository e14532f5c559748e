//! The trust region holds for what is applied: 100,000 random steps over every kind of latent weight, direction and
//! clustering, with weights read back before and after each.

use tritrain_backend::{Backend, Cpu, Memory, Values, Weight};
use tritrain_optim::{
    DigitsKind, DirectionKind, GradientKind, OptimConfig, Optimizer, Parameter, Rates, Role, Steer,
    StorageKind,
};

const ROWS: usize = 16;
const COLS: usize = 64;
const STEPS: usize = 100_000;
/// Root mean square that weights count as at least, see the kernel `descent`.
const SMALLEST: f64 = 1e-3;

/// Uniform in [0, 1).
struct Uniform(u64);

impl Uniform {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Ten to a power between two.
    fn power(&mut self, from: f64, to: f64) -> f32 {
        10f64.powf(from + (to - from) * self.next()) as f32
    }
}

fn numbers(backend: &Cpu, weight: &Weight<Cpu>) -> Vec<f64> {
    let mut host = vec![0.0; ROWS * COLS];
    match weight {
        Weight::Floats(floats) => backend.download(floats, &mut host),
        Weight::Packed(packed) => backend.download_packed(packed, &mut host),
    }
    host.into_iter().map(f64::from).collect()
}

fn norm(of: impl Iterator<Item = f64>) -> f64 {
    of.map(|x| x * x).sum::<f64>().sqrt()
}

/// Random steps of one setting; how often the bound made a row shorter.
fn walk(config: &OptimConfig, steps: usize, random: &mut Uniform) -> f64 {
    let backend = Cpu::new(1).unwrap();
    let start: Vec<f32> = (0..ROWS * COLS).map(|_| (random.next() - 0.5) as f32).collect();
    let start = Values::Floats(start.into());
    let fresh = || match config.latent.format() {
        Some(format) => Weight::Packed(start.packed(&backend, (ROWS, COLS), format, config.range)),
        None => Weight::Floats(start.floats(&backend, ROWS, COLS)),
    };
    let mut weight = fresh();
    let matrix = Parameter { name: "m".into(), rows: ROWS, cols: COLS, role: Role::Matrix };
    let mut optimizer = Optimizer::new(&backend, config, vec![matrix], true, 7);
    let mut gradient = backend.floats(ROWS * COLS);
    let (mut bounded, mut differing) = (0.0, 0);
    for step in 0..steps {
        // Steps as large as the weights are make these grow without end.
        if norm(numbers(&backend, &weight).into_iter()) > 1e6 {
            weight = fresh();
        }
        let before = numbers(&backend, &weight);
        let size = random.power(-6.0, 3.0);
        let mut host: Vec<f32> = (0..ROWS * COLS).map(|_| size * (random.next() - 0.5) as f32).collect();
        if config.digits == DigitsKind::Clusters {
            // Rows that differ enough to get other numbers of digits.
            host.chunks_exact_mut(COLS).step_by(3).flatten().for_each(|g| *g *= 30.0);
        }
        backend.upload(&host, &mut gradient);
        let radius = random.power(-4.0, 0.0);
        let steers: Vec<Steer> = (0..config.clusters)
            .map(|_| Steer { rate: random.power(-1.8, 1.8), radius: random.power(-0.6, 0.6) })
            .collect();
        let rates = Rates { matrices: random.power(-3.0, 0.3), embedding: 0.0, radius };
        optimizer.steer(&steers);
        optimizer.begin(&backend);
        optimizer.direct(&backend, 0, &weight, &mut gradient, rates);
        optimizer.apply(&backend, 0, &mut weight, &gradient, rates);
        bounded += optimizer.report().bounded;
        let after = numbers(&backend, &weight);
        // Clusters as they were for this step.
        let labels: Vec<usize> = labels(&optimizer);
        let rms = (norm(before.iter().copied()) / (before.len() as f64).sqrt()).max(SMALLEST);
        let moved = |row: usize| (row * COLS..(row + 1) * COLS).map(|at| after[at] - before[at]);
        let mean_row = rms * (COLS as f64).sqrt();
        let mut whole = 0.0;
        for (cluster, steer) in steers.iter().enumerate() {
            let rows: Vec<usize> = (0..ROWS).filter(|row| labels[*row] == cluster).collect();
            let limit = f64::from(radius * steer.radius);
            for row in &rows {
                let length = norm(moved(*row));
                assert!(
                    length <= limit * mean_row * (1.0 + 1e-6),
                    "{config:?}, step {step}, row {row}: {length}"
                );
            }
            let limit = limit * mean_row * (rows.len() as f64).sqrt();
            let length = norm(rows.iter().flat_map(|row| moved(*row)));
            assert!(length <= limit * (1.0 + 1e-6), "{config:?}, step {step}, cluster {cluster}: {length}");
            whole += limit * limit;
        }
        let length = norm((0..ROWS).flat_map(moved));
        assert!(length <= whole.sqrt() * (1.0 + 1e-6), "{config:?}, step {step}: {length}");
        // What becomes of rows that get other numbers of digits is no part of the step, and told apart.
        let weights = std::slice::from_mut(&mut weight);
        let told = optimizer.end(&backend, weights).map_or(0.0, f64::from);
        let found = norm(numbers(&backend, &weight).iter().zip(&after).map(|(a, b)| a - b));
        let told = told * norm(before.iter().copied());
        assert!((told - found).abs() <= 1e-5 * found, "{config:?}, step {step}: {told} and {found}");
        if let Weight::Packed(packed) = &weight {
            let taken = backend.stored(packed);
            let room = ROWS * config.latent.format().unwrap().row_len(COLS);
            assert!(taken.bytes.len() <= room && taken.check(ROWS, COLS).is_ok());
            differing += usize::from(!taken.digits.is_empty());
        }
    }
    let by_cluster = config.digits == DigitsKind::Clusters;
    assert_eq!(
        by_cluster,
        differing > steps / 2,
        "{config:?}: digits differ in {differing} steps of {steps}"
    );
    bounded / (steps * ROWS) as f64
}

/// The cluster of each row, as a checkpoint would keep it.
fn labels(optimizer: &Optimizer<Cpu>) -> Vec<usize> {
    let state = optimizer.state();
    let found = state.into_iter().find(|(name, ..)| name == "clusters.labels");
    match found {
        Some((_, _, tritrain_optim::Part::Host(labels))) => {
            labels.iter().map(|label| *label as usize).collect()
        }
        _ => vec![0; ROWS],
    }
}

#[test]
fn no_step_leaves_its_radius() {
    use DirectionKind as D;
    use StorageKind as S;
    let latents = [S::F32, S::Bf16, S::Int8, S::Trits3, S::Trits4, S::Trits5];
    let directions = [D::Factored, D::Adamw, D::Adamw8, D::Lion, D::Signum, D::Muon];
    let mut settings = Vec::new();
    for latent in latents {
        for direction in directions {
            for clusters in [1, 3] {
                let gradient = GradientKind::None;
                settings.push(OptimConfig {
                    latent,
                    direction,
                    clusters,
                    gradient,
                    ..OptimConfig::default()
                });
            }
        }
    }
    for latent in [S::Trits3, S::Trits4] {
        for direction in [D::Factored, D::Muon] {
            let (clusters, digits, gradient) = (3, DigitsKind::Clusters, GradientKind::None);
            settings.push(OptimConfig {
                latent,
                direction,
                clusters,
                digits,
                gradient,
                ..OptimConfig::default()
            });
        }
    }
    let (mut random, mut shares) = (Uniform(0x9e37_79b9_7f4a_7c15), Vec::new());
    for config in &settings {
        shares.push(walk(config, STEPS.div_ceil(settings.len()), &mut random));
    }
    // The bound is at work, and not in every step.
    assert!(shares.iter().all(|share| (0.05..0.999).contains(share)), "{shares:?}");
}
