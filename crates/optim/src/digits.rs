//! Suggested precision: how many balanced ternary digits the rows of a matrix have, by cluster.

use tritrain_backend::Format;

/// Digits that a row has at least: with one, every level is a code of its own and nothing is kept below it.
const LEAST: u8 = 2;
/// Digits that a row has at most.
const MOST: u8 = 5;

/// Suggests `digits` for the rows of a matrix of `cols` columns, in as many bytes as `even` digits for each take.
///
/// Rows `r` of cluster `c` are expected to lose `G_c · Δ(d_r)²` by rounding, where `G_c` is the mean of `gradients`
/// (mean squares of the gradient of a row, an empirical Fisher information) over the rows of `c` in this matrix, and
/// `Δ(d) = R / ((3ᵈ - 1)/2)` is the step of `d` digits that reach to `±R`. Of all numbers from two to five with
/// `Σ_r ⌈d_r · cols / 5⌉ ≤ rows · ⌈even · cols / 5⌉` bytes, those are taken for which the sum of losses is least but for
/// a row: all begin with two, and the cluster whose next digit takes most off the loss for its bytes gets it, of equals
/// the one with fewer digits, then the first. The last to get one may have room for its first rows alone.
///
/// `clusters` are their number and that of each row. A cluster with larger gradients has no fewer digits.
pub(crate) fn suggest(
    even: u8,
    cols: usize,
    (k, labels): (usize, &[u8]),
    gradients: impl Iterator<Item = f32>,
    digits: &mut [u8],
) {
    let (mut sums, mut counts, mut at) = (vec![0.0; k], vec![0; k], vec![LEAST; k]);
    for (label, gradient) in labels.iter().zip(gradients) {
        sums[usize::from(*label)] += f64::from(gradient);
        counts[usize::from(*label)] += 1;
    }
    digits.fill(LEAST);
    let len = |digits: u8| Format::Trits(digits).row_len(cols);
    let mut left = labels.len() * (len(even) - len(LEAST));
    loop {
        let saved = |c: usize| {
            let loss = |digits| sums[c] / counts[c] as f64 * square_step(digits);
            (loss(at[c]) - loss(at[c] + 1)) / (len(at[c] + 1) - len(at[c])).max(1) as f64
        };
        let better = |a: &usize, b: &usize| {
            let (less, fewer) = (saved(*a).total_cmp(&saved(*b)), at[*b].cmp(&at[*a]));
            less.then(fewer).then(b.cmp(a))
        };
        let can = (0..k).filter(|c| counts[*c] > 0 && at[*c] < MOST);
        let Some(next) = can.max_by(better) else { return };
        let bytes = len(at[next] + 1) - len(at[next]);
        let fit = left.checked_div(bytes).unwrap_or(counts[next]).min(counts[next]);
        let rows = digits.iter_mut().zip(labels).filter(|(_, label)| usize::from(**label) == next);
        rows.take(fit).for_each(|(digits, _)| *digits += 1);
        left -= fit * bytes;
        at[next] += 1;
        if fit < counts[next] {
            return;
        }
    }
}

/// Square of the step of levels that reach to one.
fn square_step(digits: u8) -> f64 {
    Format::Trits(digits).largest().map_or(0.0, |largest| f64::from(largest).powi(-2))
}

#[cfg(test)]
mod tests {
    use tritrain_backend::Stream;

    use super::*;

    /// What is suggested for clusters of some rows each, whose gradients have these mean squares.
    fn suggested(even: u8, cols: usize, clusters: &[(usize, f32)]) -> Vec<Vec<u8>> {
        // Rows of the clusters in turn.
        let mut labels = Vec::new();
        for turn in 0..clusters.iter().map(|(rows, _)| *rows).max().unwrap() {
            labels.extend((0..clusters.len()).filter(|c| turn < clusters[*c].0).map(|c| c as u8));
        }
        let mut digits = vec![0; labels.len()];
        let gradients = labels.iter().map(|label| clusters[usize::from(*label)].1);
        suggest(even, cols, (clusters.len(), &labels), gradients, &mut digits);
        let of = |cluster: usize| {
            labels.iter().zip(&digits).filter(|(l, _)| usize::from(**l) == cluster).map(|(_, d)| *d).collect()
        };
        (0..clusters.len()).map(of).collect()
    }

    fn loss(clusters: &[(usize, f32)], digits: &[Vec<u8>]) -> f64 {
        let of = |((_, gradient), digits): (&(usize, f32), &Vec<u8>)| -> f64 {
            digits.iter().map(|digits| f64::from(*gradient) * square_step(*digits)).sum()
        };
        clusters.iter().zip(digits).map(of).sum()
    }

    #[test]
    fn digits_go_where_gradients_are() {
        // Alike, or not different enough for a step a third as long here to pay for one thrice as long there.
        for ratio in [1.0, 9.0] {
            assert_eq!(suggested(3, 256, &[(4, 1.0), (4, ratio)]), [[3; 4], [3; 4]]);
        }
        assert_eq!(suggested(3, 256, &[(4, 1.0), (4, 12.0)]), [[2; 4], [4; 4]]);
        assert_eq!(suggested(4, 256, &[(4, 1.0), (4, 12.0)]), [[3; 4], [5; 4]]);
        // A part of the larger cluster is enough.
        assert_eq!(suggested(3, 256, &[(6, 1.0), (2, 12.0)]), [vec![3, 3, 3, 3, 2, 2], vec![4, 4]]);
        assert_eq!(suggested(3, 256, &[(6, 1.0), (2, 2e3)]), [vec![3, 3, 2, 2, 2, 2], vec![5, 5]]);
        // Clusters without rows, or without gradients.
        assert_eq!(suggested(3, 256, &[(0, 1.0), (3, 0.0), (3, 0.0)]), [vec![], vec![3; 3], vec![3; 3]]);
    }

    #[test]
    fn room_is_kept_to_and_no_other_choice_is_better_by_more_than_a_row() {
        for case in 0..300 {
            let random = Stream::new(3, 1, case);
            let draw = |at: u64, count: u32| (random.block(at)[0] % count) as usize;
            let k = 1 + draw(0, 4);
            let cluster = |c: usize| (1 + draw(1 + c as u64, 30), (2.0 * random.normal(50 + c as u64)).exp());
            let clusters: Vec<(usize, f32)> = (0..k).map(cluster).collect();
            let (even, cols) = (3 + draw(100, 2) as u8, [7, 64, 256, 768][draw(101, 4)]);
            let found = suggested(even, cols, &clusters);
            let len = |digits: u8| Format::Trits(digits).row_len(cols);
            let rows: usize = clusters.iter().map(|(rows, _)| rows).sum();
            let taken: usize = found.iter().flatten().map(|digits| len(*digits)).sum();
            assert!(taken <= rows * len(even), "{clusters:?}: {found:?}");
            let largest = clusters.iter().map(|(_, gradient)| *gradient).fold(0.0, f32::max);
            for (a, b) in (0..k).flat_map(|a| (0..k).map(move |b| (a, b))) {
                if clusters[a].1 > clusters[b].1 {
                    assert!(found[a].iter().min() >= found[b].iter().max(), "{clusters:?}: {found:?}");
                }
            }
            // Every choice of one number for each cluster.
            let row = f64::from(largest) * square_step(LEAST);
            for choice in 0..4usize.pow(k as u32) {
                let digits =
                    |c: usize| vec![LEAST + (choice / 4usize.pow(c as u32) % 4) as u8; clusters[c].0];
                let other: Vec<Vec<u8>> = (0..k).map(digits).collect();
                if other.iter().flatten().map(|digits| len(*digits)).sum::<usize>() <= rows * len(even) {
                    let (ours, theirs) = (loss(&clusters, &found), loss(&clusters, &other));
                    assert!(ours <= theirs + row, "{clusters:?}: {found:?}, {ours}; {other:?}, {theirs}");
                }
            }
        }
    }
}
