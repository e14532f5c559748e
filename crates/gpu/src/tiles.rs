//! How large the tiles of kernels are: what should be fast on a class of devices, and what is, by measurement.
//!
//! Integers come out the same whatever the tiles. So do f32 products, which are summed in the order of the inner index;
//! attention rescales its sums once a tile, so its last bits belong to the tile.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use tritrain_backend::{Backend, Memory, Products, Shape, rope_table};

use crate::{Class, Gpu};

/// Tile of a product: a cube computes sixteen times `own` rows and columns of the result, `depth` words or numbers of
/// the inner index at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tile {
    /// Rows, and columns, of a unit.
    pub own: usize,
    /// Words of four int8, or f32 numbers, along the inner index.
    pub depth: usize,
}

/// Tiles of all kernels that have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Tiles {
    /// Products of int8 or int16 with int8 or ternary codes.
    pub product: Tile,
    /// Products of twelve bits with twelve bits, which have four planes.
    pub planes: Tile,
    /// Products in f32.
    pub matmul: Tile,
    /// Rows of a tile of attention, at most.
    pub attention: usize,
}

const fn tile(own: usize, depth: usize) -> Tile {
    Tile { own, depth }
}

/// What a kernel may have; the first is the default of devices with memory of their own.
const PRODUCT: [Tile; 3] = [tile(4, 8), tile(4, 16), tile(2, 8)];
const PLANES: [Tile; 3] = [tile(2, 8), tile(2, 16), tile(1, 16)];
const MATMUL: [Tile; 4] = [tile(4, 8), tile(4, 16), tile(2, 16), tile(2, 8)];
const ATTENTION: [usize; 2] = [16, 8];

/// How long one candidate took.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    /// The tile in words.
    pub tile: String,
    /// Milliseconds, the shortest of a few.
    pub ms: f64,
}

/// What [`Gpu::tune`] found.
#[derive(Clone, Debug, PartialEq)]
pub struct Tuned {
    /// The fastest of each.
    pub tiles: Tiles,
    /// What each candidate took, by kernel.
    pub timed: [(&'static str, Vec<Timed>); 4],
}

impl Tiles {
    /// What should do on devices of a class. On one with memory of its own tiles are as large as registers allow;
    /// one that shares memory has fewer units to keep busy; to a program every barrier costs, so tiles are deep.
    pub fn of(class: Class) -> Tiles {
        match class {
            Class::Discrete => {
                Tiles { product: PRODUCT[0], planes: PLANES[0], matmul: MATMUL[0], attention: 16 }
            }
            Class::Integrated => {
                Tiles { product: tile(2, 8), planes: tile(2, 8), matmul: tile(2, 16), attention: 16 }
            }
            Class::Software => {
                Tiles { product: tile(4, 16), planes: tile(2, 16), matmul: tile(4, 16), attention: 16 }
            }
        }
    }

    /// Sets of tiles in which every candidate of every kernel occurs.
    pub fn candidates() -> Vec<Tiles> {
        let of = |at: usize| Tiles {
            product: PRODUCT[at % PRODUCT.len()],
            planes: PLANES[at % PLANES.len()],
            matmul: MATMUL[at % MATMUL.len()],
            attention: ATTENTION[at % ATTENTION.len()],
        };
        (0..PRODUCT.len().max(MATMUL.len())).map(of).collect()
    }

    /// Whether these are candidates: what was kept on a disk may be anything.
    pub fn are_known(&self) -> bool {
        PRODUCT.contains(&self.product)
            && PLANES.contains(&self.planes)
            && MATMUL.contains(&self.matmul)
            && ATTENTION.contains(&self.attention)
    }

    /// In a few words.
    pub fn describe(&self) -> String {
        let Tiles { product, planes, matmul, attention } = self;
        let of = |tile: &Tile| format!("{} × {0} × {}", 16 * tile.own, tile.depth);
        format!(
            "integers {}, twelve bits {}, f32 {}, attention {attention} rows",
            of(product),
            of(planes),
            of(matmul)
        )
    }
}

/// Times that each candidate is measured.
const ROUNDS: usize = 3;

impl Gpu {
    /// The tiles in use.
    pub fn tiles(&self) -> Tiles {
        self.tiles
    }

    /// The same backend with other tiles.
    ///
    /// # Panics
    /// They are no candidates.
    #[must_use]
    pub fn with_tiles(mut self, tiles: Tiles) -> Gpu {
        assert!(tiles.are_known(), "{tiles:?} are tiles of no kernel");
        self.tiles = tiles;
        self
    }

    /// Times every candidate on a shape of a small model: 2048 tokens, 256 columns (of a program 64 and 64); the
    /// fastest of each are in use from then on. It takes less than a second on a device, most of it for compiling.
    pub fn tune(&mut self) -> Tuned {
        let software = self.adapter().class == Class::Software;
        let (tokens, dim, heads) = if software { (64, 64, 1) } else { (2048, 256, 4) };
        let (mut timed, before) = (Vec::new(), self.tiles);
        let mut best = before;
        let ones = |gpu: &Gpu, len: usize| gpu.given(&vec![0.5; len]);
        let (x, w) = (ones(self, tokens * dim), ones(self, 4 * dim * dim));
        let (mut rows, mut matrix) = (self.rows(tokens, dim), self.ternary(4 * dim, dim, false));
        self.quantize_rows(&x, &mut rows);
        self.ternarize(&w, &mut matrix);
        let mut y = self.unset(tokens * 4 * dim);
        let product = self.fastest(
            &PRODUCT,
            name,
            |tiles, tile| tiles.product = tile,
            |gpu| {
                gpu.ternary_matmul(&rows, &matrix, None, &mut y);
                gpu.wait(&y);
            },
        );
        best.product = product.0;
        timed.push(("integers", product.1));
        let targets = self.tokens(tokens);
        let mut losses = self.unset(tokens);
        let planes = self.fastest(
            &PLANES,
            name,
            |tiles, tile| tiles.planes = tile,
            |gpu| {
                gpu.head_loss(&x, &w, &targets, (dim, Products::Int16), &mut losses);
                gpu.wait(&losses);
            },
        );
        best.planes = planes.0;
        timed.push(("twelve bits", planes.1));
        let matmul = self.fastest(
            &MATMUL,
            name,
            |tiles, tile| tiles.matmul = tile,
            |gpu| {
                gpu.matmul(&x, &w, dim, None, &mut y);
                gpu.wait(&y);
            },
        );
        best.matmul = matmul.0;
        timed.push(("f32", matmul.1));
        let shape = Shape { batch: 4, time: tokens / 4, heads, kv_heads: heads, head_dim: dim / heads };
        let qkv = ones(self, shape.rows() * shape.qkv_width());
        let table = self.given(&rope_table(shape.time, shape.head_dim, 10_000.0));
        let (mut out, mut lse) = (self.unset(shape.rows() * dim), self.unset(shape.rows() * heads));
        let d_out = ones(self, shape.rows() * dim);
        let mut d_qkv = self.unset(shape.rows() * shape.qkv_width());
        let rows_of = |rows: usize| format!("{rows} rows");
        let attention = self.fastest(
            &ATTENTION,
            rows_of,
            |tiles, tile| tiles.attention = tile,
            |gpu| {
                gpu.attention(&qkv, &table, shape, &mut out, &mut lse);
                gpu.attention_backward(&qkv, (&out, &lse), &d_out, &table, shape, &mut d_qkv);
                gpu.wait(&d_qkv);
            },
        );
        best.attention = attention.0;
        timed.push(("attention", attention.1));
        self.tiles = best;
        let timed = timed.try_into().unwrap_or_else(|_| unreachable!("four kernels were timed"));
        Tuned { tiles: best, timed }
    }

    /// The fastest of some candidates, and what each took; rounds alternate, the first warms up.
    fn fastest<T: Copy>(
        &mut self,
        candidates: &[T],
        name: impl Fn(T) -> String,
        set: impl Fn(&mut Tiles, T),
        mut work: impl FnMut(&Gpu),
    ) -> (T, Vec<Timed>) {
        let mut shortest = vec![f64::INFINITY; candidates.len()];
        for round in 0..=ROUNDS {
            for (candidate, shortest) in candidates.iter().zip(&mut shortest) {
                set(&mut self.tiles, *candidate);
                let started = Instant::now();
                work(self);
                if round > 0 {
                    *shortest = shortest.min(started.elapsed().as_secs_f64());
                }
            }
        }
        let least = (0..candidates.len()).min_by(|a, b| shortest[*a].total_cmp(&shortest[*b])).unwrap_or(0);
        let timed = candidates.iter().zip(shortest);
        let timed = timed.map(|(tile, seconds)| Timed { tile: name(*tile), ms: seconds * 1e3 }).collect();
        (candidates[least], timed)
    }

    /// Waits for a buffer.
    fn wait(&self, of: &crate::Floats) {
        self.read(&of.handle, 4);
    }
}

fn name(tile: Tile) -> String {
    format!("{} × {0} × {}", 16 * tile.own, tile.depth)
}
