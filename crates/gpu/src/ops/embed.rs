//! Token embeddings: rows of a table in, their gradients out.

use cubecl::{prelude::*, server::Handle};

use crate::{
    Floats, Gpu, Tokens,
    blocks::UNITS,
    launch::{arg, cubes, cubes_for, launch, units},
};

/// Says that there is no such position.
const NONE: u32 = u32::MAX;

#[cube(launch, create_dummy_kernel)]
fn gather(tokens: &[u32], table: &[f32], x: &mut [f32], dim: usize) {
    if ABSOLUTE_POS < x.len() {
        let token = tokens[ABSOLUTE_POS / dim] as usize;
        x[ABSOLUTE_POS] = table[token * dim + ABSOLUTE_POS % dim];
    }
}

/// One unit a position: whether its token came before, and where it comes again.
#[cube(launch, create_dummy_kernel)]
fn link(tokens: &[u32], links: &mut [u32], first: usize, count: usize) {
    if ABSOLUTE_POS < count {
        let token = tokens[first + ABSOLUTE_POS];
        let mut next = ABSOLUTE_POS + 1;
        while next < count && tokens[first + next] != token {
            next += 1;
        }
        let mut before = ABSOLUTE_POS;
        while before > 0 && tokens[first + before - 1] != token {
            before -= 1;
        }
        links[2 * ABSOLUTE_POS] = u32::cast_from(before > 0);
        links[2 * ABSOLUTE_POS + 1] = if next < count { next as u32 } else { NONE.runtime() };
    }
}

/// One cube a position: where its token occurs first, the sum over all its positions, in order.
#[cube(launch, create_dummy_kernel)]
fn scatter(tokens: &[u32], links: &[u32], dx: &[f32], d_table: &mut [f32], dim: usize) {
    if CUBE_POS < tokens.len() && links[2 * CUBE_POS] == 0u32 {
        let row = tokens[CUBE_POS] as usize * dim;
        let mut col = UNIT_POS as usize;
        while col < dim {
            let mut sum = d_table[row + col];
            let mut at = CUBE_POS as u32;
            while at != NONE {
                sum += dx[at as usize * dim + col];
                at = links[2 * at as usize + 1];
            }
            d_table[row + col] = sum;
            col += UNITS;
        }
    }
}

/// For each of `count` positions from `first` on: whether its token occurs before in them, and where it does next, as
/// `[count][2]`.
pub(super) fn link_targets(gpu: &Gpu, tokens: &Tokens, first: usize, count: usize) -> Handle {
    let links = gpu.room(2 * count);
    let out = arg(&links, 2 * count);
    launch!(gpu, link, cubes_for(count), units(), tokens.arg(), out, first, count);
    links
}

pub(crate) fn embed(gpu: &Gpu, tokens: &Tokens, table: &Floats, dim: usize, x: &mut Floats) {
    assert_eq!(x.len, tokens.len * dim, "lengths of an embedding");
    launch!(gpu, gather, cubes_for(x.len), units(), tokens.arg(), table.arg(), x.arg(), dim);
}

pub(crate) fn embed_backward(gpu: &Gpu, tokens: &Tokens, dx: &Floats, dim: usize, d_table: &mut Floats) {
    assert_eq!(dx.len, tokens.len * dim, "lengths of an embedding");
    let links = link_targets(gpu, tokens, 0, tokens.len);
    launch!(
        gpu,
        scatter,
        cubes(tokens.len),
        units(),
        tokens.arg(),
        arg(&links, 2 * tokens.len),
        dx.arg(),
        d_table.arg(),
        dim,
    );
}
