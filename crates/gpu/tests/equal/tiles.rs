//! Kernels with every tile that they may have.

use tritrain_backend::{Products, Shape};
use tritrain_gpu::{Choice, Class, Tiles};

use crate::{
    Random, compare_on, gpu_of,
    model::{Attention, Dense, Head, Linear},
};

#[test]
fn every_tile_gives_the_same() {
    for (at, tiles) in Tiles::candidates().into_iter().enumerate() {
        let gpu = gpu_of(Choice::Software).with_tiles(tiles);
        let mut random = Random::new(at as u64);
        for seed in 0..6 {
            let (tokens, outputs, inputs) = (random.size(140), random.size(200), random.size(300));
            compare_on(&gpu, &Linear { tokens, outputs, inputs, seed });
            let (tokens, outputs, inputs) = (random.size(140), random.size(140), random.size(140));
            compare_on(&gpu, &Dense { tokens, outputs, inputs, seed });
            let (tokens, vocab, dim) = (random.size(80), 1 + random.size(200), random.size(150));
            let products = if seed % 2 == 0 { Products::Int16 } else { Products::F32 };
            compare_on(&gpu, &Head { tokens, vocab, dim, products, seed });
            let (time, kv_heads) = (random.size(70), random.size(2));
            let head_dim = [16, 32, 48, 64, 128, 2 * random.size(80)][seed as usize];
            let shape = Shape { batch: 2, time, heads: 2 * kv_heads, kv_heads, head_dim };
            compare_on(&gpu, &Attention { shape, seed });
        }
        // More blocks than one along the inner index.
        compare_on(&gpu, &Linear { tokens: 1030, outputs: 5, inputs: 9, seed: 2 });
        compare_on(&gpu, &Head { tokens: 9, vocab: 70, dim: 520, products: Products::Int16, seed: 3 });
    }
}

#[test]
fn tuning_takes_one_of_the_candidates_it_timed() {
    let mut gpu = gpu_of(Choice::Software);
    assert_eq!(gpu.tiles(), Tiles::of(Class::Software));
    let tuned = gpu.tune();
    assert_eq!(gpu.tiles(), tuned.tiles);
    assert!(tuned.tiles.are_known());
    for (kernel, timed) in &tuned.timed {
        assert!((2..=4).contains(&timed.len()), "{kernel}: {timed:?}");
        assert!(timed.iter().all(|of| of.ms > 0.0 && of.ms.is_finite()), "{kernel}: {timed:?}");
        let least = timed.iter().min_by(|a, b| a.ms.total_cmp(&b.ms)).unwrap();
        assert!(tuned.tiles.describe().contains(&least.tile), "{} is not {least:?}", tuned.tiles.describe());
    }
    compare_on(&gpu, &Linear { tokens: 70, outputs: 80, inputs: 90, seed: 1 });
}

#[test]
fn tiles_of_every_class_are_candidates() {
    for class in [Class::Discrete, Class::Integrated, Class::Software] {
        assert!(Tiles::of(class).are_known(), "{class:?}");
    }
    let all = Tiles::candidates();
    let mut other = all[0];
    other.product.own = 3;
    assert!(all.iter().all(Tiles::are_known) && !other.are_known());
    let kinds =
        |of: fn(&Tiles) -> String| all.iter().map(of).collect::<std::collections::BTreeSet<_>>().len();
    let found = [
        kinds(|tiles| format!("{:?}", tiles.product)),
        kinds(|tiles| format!("{:?}", tiles.planes)),
        kinds(|tiles| format!("{:?}", tiles.matmul)),
        kinds(|tiles| format!("{:?}", tiles.attention)),
    ];
    assert_eq!(found, [3, 3, 4, 2], "every candidate is in one of the sets");
}
