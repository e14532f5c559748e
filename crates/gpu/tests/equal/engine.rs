//! Single operations on a software device against the plain loops of the processor.

use std::sync::OnceLock;

use tritrain_cluster::{Options, Start};
use tritrain_dispatch::{Config, Dispatcher, Engine, EngineKind, Error, Quantized, Task, TernaryWeights};
use tritrain_gpu::{Choice, Gpu, GpuEngine};

use crate::{NMSE, Random};

/// A dispatcher over plain loops alone.
fn plain() -> &'static Dispatcher {
    static PLAIN: OnceLock<Dispatcher> = OnceLock::new();
    PLAIN.get_or_init(|| {
        let config = Config { simd: false, parallel: false, threads: 1, ..Config::default() };
        Dispatcher::new(config, Err("plain loops".into()), None).unwrap()
    })
}

fn software() -> GpuEngine {
    GpuEngine::new(crate::gpu_of(Choice::Software))
}

/// A dispatcher that asks every engine.
fn asking() -> Dispatcher {
    let config = Config { min_size_for_gpu: 0, benchmark_mode: true, threads: 1, ..Config::default() };
    Dispatcher::new(config, Ok(Box::new(software())), None).unwrap()
}

#[track_caller]
fn close(what: &str, found: &[f32], expected: &[f32]) {
    let pairs = || found.iter().zip(expected).map(|(f, e)| (f64::from(*f), f64::from(*e)));
    let error: f64 = pairs().map(|(f, e)| (f - e).powi(2)).sum();
    let size: f64 = pairs().map(|(_, e)| e * e).sum();
    assert!(found.len() == expected.len() && error <= NMSE * size, "{what}: {}", error / size);
}

#[test]
fn conversions_are_the_same() {
    let engine = software();
    let mut lengths = vec![0, 1, 3, 4, 16, 17, 4096, 4097, 70_001];
    let mut random = Random::new(1);
    lengths.extend((0..80).map(|_| random.size(5000)));
    for len in lengths {
        let mut x = random.normal(len);
        // Ties with half the scale, and zeros of both signs.
        x.iter_mut().step_by(7).for_each(|x| *x = -0.0);
        let expected = plain().quantize(&x).unwrap();
        let mut codes = vec![0; expected.codes().len()];
        let scale = engine.quantize(&x, &mut codes).unwrap();
        assert_eq!((&codes[..], scale), (expected.codes(), expected.scale()), "{len}");
        let (mut found, mut wanted) = (vec![f32::NAN; len], vec![f32::NAN; len]);
        engine.dequantize(&codes, scale, &mut found).unwrap();
        plain().dequantize(&expected, &mut wanted).unwrap();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&found), bits(&wanted), "{len}");
    }
}

#[test]
fn what_cannot_be_converted_is_refused_in_the_same_words() {
    let engine = software();
    for (len, at, value) in [(1, 0, f32::NAN), (5000, 4999, f32::INFINITY), (300, 7, f32::NEG_INFINITY)] {
        let mut x = vec![1.0; len];
        x[at] = value;
        let found = engine.quantize(&x, &mut vec![0; len.div_ceil(4)]).unwrap_err().to_string();
        assert_eq!(found, plain().quantize(&x).unwrap_err().to_string());
    }
    let found = engine.quantize(&[1e6; 9], &mut [0; 3]).unwrap_err().to_string();
    assert!(found.contains("65504"), "{found}");
    for (codes, len) in [(vec![0x55, 0x55, 0xd5], 12), (vec![0x55, 0x95], 7), (vec![0x55; 300], 1197)] {
        let mut codes = codes;
        if len == 1197 {
            codes[299] = 0x59;
        }
        let found = engine.dequantize(&codes, 1.0, &mut vec![0.0; len]).unwrap_err().to_string();
        let quantized = Quantized::new(codes, 1.0, len).unwrap();
        assert_eq!(found, plain().dequantize(&quantized, &mut vec![0.0; len]).unwrap_err().to_string());
    }
    // It works on after that.
    assert_eq!(engine.quantize(&[3.0, -1.0], &mut [0]).unwrap(), 2.0);
}

#[test]
fn products_are_the_same() {
    let engine = software();
    let mut sizes = vec![[1, 1, 1], [1, 130, 70], [65, 31, 129], [33, 64, 256]];
    let mut random = Random::new(2);
    sizes.extend((0..80).map(|_| [random.size(70), random.size(80), random.size(150)]));
    for [rows, outputs, inputs] in sizes {
        let (x, w) = (random.normal(rows * inputs), random.normal(outputs * inputs));
        let (mut found, mut wanted) = (vec![f32::NAN; rows * outputs], vec![f32::NAN; rows * outputs]);
        engine.matmul(&x, &w, [rows, outputs, inputs], &mut found).unwrap();
        plain().matmul(&x, &w, [rows, outputs, inputs], &mut wanted).unwrap();
        close("matmul", &found, &wanted);
        let weights = TernaryWeights::new(plain().quantize(&w).unwrap(), outputs, inputs).unwrap();
        engine.ternary_matmul(&x, &weights, &mut found).unwrap();
        plain().ternary_matmul(&x, &weights, &mut wanted).unwrap();
        assert_eq!(found, wanted, "{rows} × {outputs} × {inputs}");
    }
}

#[test]
fn clusters_of_the_engine_are_the_same() {
    let engine = software();
    let mut random = Random::new(3);
    for (rows, dim, k) in [(700, 19, 6), (60, 1, 3), (300, 70, 12)] {
        let x = random.normal(rows * dim);
        let options = Options { tolerance: 0.0, iterations: 12, ..Options::default() };
        for start in [Start::Given(&x[..k * dim]), Start::Seeded(k)] {
            let found = engine.kmeans(&x, (rows, dim), start, &options).unwrap();
            let expected = plain().kmeans(&x, dim, start, &options).unwrap();
            assert_eq!((&found.labels, found.iterations), (&expected.labels, expected.iterations));
            assert_eq!(found.centroids, expected.centroids);
            close("inertia", &[found.inertia as f32], &[expected.inertia as f32]);
        }
    }
    let error = engine.kmeans(&[0.0; 8], (4, 2), Start::Seeded(5), &Options::default()).unwrap_err();
    assert!(error.to_string().contains("k is 5"), "{error}");
}

#[test]
fn a_dispatcher_gives_work_to_the_device_and_knows_what_it_cannot_hold() {
    let dispatcher = asking();
    let engines = dispatcher.engines();
    let name = engines[3].unwrap().describe();
    assert!(name.contains("Vulkan") && name.contains("software, for tests"), "{name}");
    let x = Random::new(4).normal(999);
    assert_eq!(dispatcher.quantize(&x).unwrap(), plain().quantize(&x).unwrap());
    let summary = dispatcher.metrics().backend_summary();
    assert!(summary.iter().any(|of| of.engine == EngineKind::Gpu && of.operations > 0), "{summary:?}");
    // 128 MiB is the largest buffer of the software device.
    for task in [
        Task::Quantize { len: 1 << 26 },
        Task::Matmul { rows: 1 << 14, outputs: 1 << 14, inputs: 8 },
        Task::TernaryMatmul { rows: 1 << 20, outputs: 1 << 14, inputs: 8 },
    ] {
        let decision = dispatcher.explain(&task);
        assert_ne!(decision.chosen, EngineKind::Gpu);
        let why = decision.weighed[3].excluded.as_ref().unwrap();
        assert!(why.contains("134217728") && why.contains("at most"), "{why}");
    }
    for (task, fits) in [
        (Task::Kmeans { rows: 1 << 20, dim: 8, k: 4096, iterations: 3 }, true),
        (Task::Kmeans { rows: 1 << 22, dim: 16, k: 4, iterations: 3 }, false),
        (Task::Matmul { rows: 1 << 21, outputs: 1, inputs: 1 }, false),
        (Task::Matmul { rows: 1 << 20, outputs: 1, inputs: 1 }, true),
    ] {
        assert_eq!(dispatcher.explain(&task).weighed[3].excluded.is_none(), fits, "{task:?}");
    }
    let ternary = Task::TernaryMatmul { rows: 1, outputs: 1 << 14, inputs: 1 << 14 };
    assert!(dispatcher.explain(&ternary).weighed[3].predicted_s > Some(0.0));
}

#[test]
fn an_engine_whose_buffer_is_refused_says_so_and_works_on() {
    let engine = software();
    let x = vec![1.0; (1 << 25) + 4];
    let error = engine.quantize(&x, &mut vec![0; x.len() / 4]).unwrap_err();
    assert!(matches!(&error, Error::Engine { reason, .. } if reason.contains("134217744 bytes")), "{error}");
    assert_eq!(engine.quantize(&[3.0, -1.0], &mut [0]).unwrap(), 2.0);
}

#[test]
fn a_device_is_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Gpu>();
    let engine = software();
    std::thread::scope(|scope| {
        for seed in 10..13 {
            let engine = &engine;
            scope.spawn(move || {
                let x = Random::new(seed).normal(1000);
                let expected = plain().quantize(&x).unwrap();
                for _ in 0..5 {
                    let mut codes = vec![0; 250];
                    let scale = engine.quantize(&x, &mut codes).unwrap();
                    assert_eq!((&codes[..], scale), (expected.codes(), expected.scale()));
                }
            });
        }
    });
}

#[test]
fn without_a_driver_of_its_own_a_way_to_compute_is_an_error() {
    for (choice, name, linked) in
        [(Choice::Cuda, "CUDA", cfg!(feature = "cuda")), (Choice::Hip, "HIP", cfg!(feature = "hip"))]
    {
        assert_eq!(Choice::WAYS.contains(&choice), linked);
        // A machine of tests may have such a device.
        let Err(error) = Gpu::new(choice) else { continue };
        let why = if linked { "its driver" } else { "built without" };
        let words = error.to_string();
        assert!(words.contains(&format!("no {name} device")) && words.contains(why), "{words}");
    }
}

#[test]
fn what_a_system_has_no_way_to_is_an_error() {
    let native = Choice::NATIVE;
    let other = if native == Choice::Metal { Choice::Vulkan } else { Choice::Metal };
    for choice in [other, native] {
        // A machine of tests may have a graphics processor of its own kind.
        match Gpu::new(choice) {
            Ok(gpu) => {
                assert!(choice == native && !gpu.adapter().to_string().contains("software"), "{choice:?}")
            }
            Err(error) => {
                let words = error.to_string();
                assert!(
                    words.contains(&format!("no {choice:?} device")) && words.contains("devices"),
                    "{words}"
                );
            }
        }
    }
}
