//! The engines of this machine against definitions in plain loops.

use tritrain_backend::Tier;
use tritrain_cluster::{Options, Start};
use tritrain_dispatch::{
    Calibration, Config, Cost, Dispatcher, EngineKind, Error, Operation, Quantized, TernaryWeights,
};
use tritrain_trit::{pack, rng::Stream, rows, ternary};

/// A dispatcher that has this engine alone to choose from besides the scalar one, whose costs look terrible.
fn only(kind: EngineKind) -> Dispatcher {
    let config = Config {
        simd: kind == EngineKind::Simd,
        parallel: kind == EngineKind::Parallel,
        threads: 3,
        ..Config::default()
    };
    Dispatcher::new(config, Err("not built".into()), None).unwrap()
}

fn kinds() -> Vec<EngineKind> {
    let mut kinds = vec![EngineKind::Scalar, EngineKind::Parallel];
    if Tier::detect().unwrap() != Tier::SCALAR {
        kinds.push(EngineKind::Simd);
    }
    kinds
}

fn normal(seed: u64, len: usize) -> Vec<f32> {
    let random = Stream::new(seed, 0, 0);
    (0..len as u64).map(|i| random.normal(i)).collect()
}

#[test]
fn every_engine_does_what_the_definitions_say() {
    for kind in kinds() {
        let dispatcher = only(kind);
        for (rows, outputs, inputs) in [(1, 1, 1), (3, 17, 33), (1, 130, 70), (65, 31, 129), (130, 64, 256)] {
            let (x, w) = (normal(1, rows * inputs), normal(2, outputs * inputs));
            let quantized = dispatcher.quantize(&w).unwrap();
            let scale = ternary::absmean(&w).unwrap();
            let mut codes = vec![0; w.len()];
            ternary::quantize(&w, scale, &mut codes);
            let mut packed = vec![0; pack::packed2_len(w.len())];
            pack::pack2(&codes, &mut packed).unwrap();
            assert_eq!((quantized.codes(), quantized.scale()), (&packed[..], scale));
            let mut back = vec![f32::NAN; w.len()];
            dispatcher.dequantize(&quantized, &mut back).unwrap();
            assert!(back.iter().zip(&codes).all(|(w, q)| *w == f32::from(*q) * scale));

            let mut y = vec![f32::NAN; rows * outputs];
            dispatcher.matmul(&x, &w, [rows, outputs, inputs], &mut y).unwrap();
            let exact = |r: usize, o: usize| -> f64 {
                (0..inputs).map(|k| f64::from(x[r * inputs + k]) * f64::from(w[o * inputs + k])).sum()
            };
            for (at, y) in y.iter().enumerate() {
                let error = (f64::from(*y) - exact(at / outputs, at % outputs)).abs();
                assert!(error < 1e-5 * inputs as f64, "{error} at {at} of {rows} × {outputs} × {inputs}");
            }

            let weights = TernaryWeights::new(quantized, outputs, inputs).unwrap();
            dispatcher.ternary_matmul(&x, &weights, &mut y).unwrap();
            for r in 0..rows {
                let mut int8 = vec![0; inputs];
                let row_scale = rows::quantize_row(&x[r * inputs..][..inputs], &mut int8).unwrap();
                for o in 0..outputs {
                    let sum: i32 =
                        (0..inputs).map(|k| i32::from(int8[k]) * i32::from(codes[o * inputs + k])).sum();
                    let expected = scale * row_scale * sum as f32;
                    let found = y[r * outputs + o];
                    assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} for {expected}");
                }
            }
        }
    }
}

#[test]
fn every_engine_finds_the_same_clusters() {
    let (rows, dim, k) = (700, 19, 6);
    let x = normal(3, rows * dim);
    let fits = kinds().into_iter().map(|kind| {
        let start = Start::Given(&x[..k * dim]);
        only(kind).kmeans(&x, dim, start, &Options { tolerance: 0.0, ..Options::default() }).unwrap()
    });
    let fits: Vec<_> = fits.collect();
    assert!(fits.windows(2).all(|pair| pair[0] == pair[1]));
    let fit = &fits[0];
    for (row, label) in x.chunks(dim).zip(&fit.labels) {
        let distance = |c: &[f32]| row.iter().zip(c).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        let distances: Vec<f64> = fit.centroids.chunks(dim).map(distance).collect();
        let least = distances.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(distances[*label as usize] <= least * (1.0 + 1e-5));
    }
}

#[test]
fn nothing_is_done_with_sizes_that_do_not_fit_and_empty_arrays_are_fine() {
    let dispatcher = only(EngineKind::Parallel);
    let empty = dispatcher.quantize(&[]).unwrap();
    assert!(empty.is_empty() && empty.scale() == 0.0);
    dispatcher.dequantize(&empty, &mut []).unwrap();
    let mut y = [1.0; 6];
    dispatcher.matmul(&[], &[], [2, 3, 0], &mut y).unwrap();
    assert_eq!(y, [0.0; 6]);
    let none = TernaryWeights::new(Quantized::new(Vec::new(), 0.0, 0).unwrap(), 3, 0).unwrap();
    y = [1.0; 6];
    dispatcher.ternary_matmul(&[], &none, &mut y).unwrap();
    assert_eq!(y, [0.0; 6]);

    let wrong = |result: Result<(), Error>, parts: [&str; 2]| {
        let message = result.unwrap_err().to_string();
        assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    };
    wrong(dispatcher.matmul(&[0.0; 5], &[0.0; 6], [2, 2, 3], &mut [0.0; 4]), ["x: expected 6", "found 5"]);
    wrong(dispatcher.matmul(&[0.0; 6], &[0.0; 6], [2, 2, 3], &mut [0.0; 5]), ["y: expected 4", "found 5"]);
    wrong(dispatcher.matmul(&[], &[], [usize::MAX, 2, 3], &mut []), ["x", "at most"]);
    let weights = TernaryWeights::new(Quantized::new(vec![0x55; 3], 1.0, 12).unwrap(), 3, 4).unwrap();
    wrong(dispatcher.ternary_matmul(&[0.0; 7], &weights, &mut [0.0; 3]), ["x: expected 4", "found 7"]);
    wrong(dispatcher.ternary_matmul(&[0.0; 8], &weights, &mut [0.0; 5]), ["y: expected 6", "found 5"]);
    wrong(dispatcher.quantize(&[1.0, f32::NAN]).map(drop), ["weight 1", "NaN"]);
    let fit = |x: &[f32], dim, k| dispatcher.kmeans(x, dim, Start::Seeded(k), &Options::default()).map(drop);
    wrong(fit(&[0.0; 7], 2, 1), ["the rows: expected 6", "found 7"]);
    wrong(fit(&[0.0; 8], 2, 5), ["k is 5", "at most 4"]);
    wrong(fit(&[0.0; 8], 0, 1), ["the rows", "8 × 0"]);
    let codes = Quantized::new(vec![0xff; 3], 1.0, 12).unwrap();
    wrong(dispatcher.dequantize(&codes, &mut [0.0; 12]), ["packed byte 0", "3"]);
}

#[test]
fn a_poisoned_calibration_is_repaired_on_this_machine() {
    let good = only(EngineKind::Parallel).calibration();
    let absurd = Cost { fixed: 3600.0, by_work: 0.0, by_byte: 0.0 };
    let all = |_: &EngineKind| absurd;
    let mut poisoned = Calibration { costs: Default::default(), ..good.clone() };
    for (operation, costs) in &good.costs {
        poisoned.costs.insert(*operation, costs.keys().map(|kind| (*kind, all(kind))).collect());
    }
    let config = Config { threads: 3, ..Config::default() };
    let dispatcher = Dispatcher::new(config, Err("not built".into()), Some(poisoned)).unwrap();
    assert!(!dispatcher.is_renewed());
    dispatcher.quantize(&normal(4, 1000)).unwrap();
    assert_eq!(dispatcher.metrics().repairs, 1);
    let repaired = dispatcher.calibration();
    for (kind, cost) in &repaired.costs[&Operation::Quantize] {
        assert_ne!(*cost, absurd, "{}", kind.name());
    }
}

#[test]
fn threads_may_share_a_dispatcher() {
    let dispatcher = Dispatcher::new(
        Config { threads: 2, simd: false, ..Config::default() },
        Err("not built".into()),
        None,
    )
    .unwrap();
    let x = normal(5, 64 * 256);
    let weights = TernaryWeights::new(dispatcher.quantize(&normal(6, 96 * 256)).unwrap(), 96, 256).unwrap();
    let mut expected = vec![0.0; 64 * 96];
    dispatcher.ternary_matmul(&x, &weights, &mut expected).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut y = vec![0.0; 64 * 96];
                for _ in 0..50 {
                    dispatcher.ternary_matmul(&x, &weights, &mut y).unwrap();
                    assert_eq!(y, expected);
                }
            });
        }
    });
    assert_eq!(dispatcher.metrics().total_operations, 202);
}
