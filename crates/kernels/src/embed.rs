//! Token embeddings: rows of a table in, their gradients out.

use crate::Context;

/// `x[t] = table[tokens[t]]`: `table` `[vocab][dim]`, `x` `[tokens][dim]`.
///
/// # Panics
/// A token is outside the table, or the lengths do not fit together.
pub fn gather(cx: &Context, tokens: &[u32], table: &[f32], dim: usize, x: &mut [f32]) {
    const ROWS: usize = 64;
    assert_eq!(x.len(), tokens.len() * dim);
    cx.chunks(x, ROWS * dim, |index, x| {
        for (x, token) in x.chunks_exact_mut(dim).zip(&tokens[index * ROWS..]) {
            x.copy_from_slice(&table[*token as usize * dim..][..dim]);
        }
    });
}

/// `d_table[tokens[t]] += dx[t]`, tokens in order.
///
/// # Panics
/// A token is outside the table, or the lengths do not fit together.
pub fn scatter_add(cx: &Context, tokens: &[u32], dx: &[f32], dim: usize, d_table: &mut [f32]) {
    /// Table rows of one task; each task walks all tokens and takes its own.
    const ROWS: usize = 256;
    assert_eq!(dx.len(), tokens.len() * dim);
    let vocab = d_table.len() / dim;
    assert!(tokens.iter().all(|token| (*token as usize) < vocab), "a token is outside the table");
    cx.chunks(d_table, ROWS * dim, |index, rows| {
        let first = index * ROWS;
        let mine = first..first + rows.len() / dim;
        for (token, dx) in tokens.iter().zip(dx.chunks_exact(dim)) {
            let token = *token as usize;
            if mine.contains(&token) {
                for (sum, dx) in rows[(token - first) * dim..][..dim].iter_mut().zip(dx) {
                    *sum += dx;
                }
            }
        }
    });
}
