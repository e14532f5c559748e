//! How far two divisions of the same things agree.

use std::collections::BTreeMap;

/// How often each pair of classes occurs together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    cells: BTreeMap<(u32, u32), u64>,
    first: BTreeMap<u32, u64>,
    second: BTreeMap<u32, u64>,
    all: u64,
}

impl Table {
    /// Counts pairs of classes.
    pub fn new(pairs: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let mut table = Table::default();
        for (a, b) in pairs {
            *table.cells.entry((a, b)).or_default() += 1;
            *table.first.entry(a).or_default() += 1;
            *table.second.entry(b).or_default() += 1;
            table.all += 1;
        }
        table
    }

    /// How often `(first, second)` occurs.
    pub fn count(&self, first: u32, second: u32) -> u64 {
        self.cells.get(&(first, second)).copied().unwrap_or(0)
    }

    /// Number of classes of the first and of the second division.
    pub fn classes(&self) -> (usize, usize) {
        (self.first.len(), self.second.len())
    }

    /// Mutual information over the mean of the two entropies, 0 to 1, as scikit-learn's
    /// `normalized_mutual_info_score` has it: 1 when both have no more than one class.
    pub fn nmi(&self) -> f64 {
        if self.first.len() <= 1 && self.second.len() <= 1 {
            return 1.0;
        }
        let all = self.all as f64;
        let entropy = |counts: &BTreeMap<u32, u64>| -> f64 {
            counts.values().map(|&n| n as f64 / all).map(|p| -p * libm::log(p)).sum()
        };
        let mutual = self.cells.iter().map(|((a, b), &n)| {
            let of = |counts: &BTreeMap<u32, u64>, class| counts.get(class).map_or(1.0, |&n| n as f64);
            let n = n as f64;
            n / all * libm::log(n * all / (of(&self.first, a) * of(&self.second, b)))
        });
        let mean = (entropy(&self.first) + entropy(&self.second)) / 2.0;
        (mutual.sum::<f64>() / mean).clamp(0.0, 1.0)
    }

    /// Share of things that belong to the most frequent second class of their first class: labels of
    /// clusters first, true classes second.
    pub fn purity(&self) -> f64 {
        let mut most: BTreeMap<u32, u64> = BTreeMap::new();
        for ((a, _), &n) in &self.cells {
            let best = most.entry(*a).or_default();
            *best = n.max(*best);
        }
        if self.all == 0 { 1.0 } else { most.values().sum::<u64>() as f64 / self.all as f64 }
    }
}

/// [`Table::nmi`] of two lists; what is missing in the shorter one is left out.
pub fn nmi(first: &[u32], second: &[u32]) -> f64 {
    Table::new(first.iter().copied().zip(second.iter().copied())).nmi()
}

/// [`Table::purity`] of clusters with respect to true classes.
pub fn purity(clusters: &[u32], classes: &[u32]) -> f64 {
    Table::new(clusters.iter().copied().zip(classes.iter().copied())).purity()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// sklearn 1.9.1: `normalized_mutual_info_score(a, b)` of each line.
    #[test]
    fn nmi_is_that_of_scikit_learn() {
        let long = |n: u32, f: fn(u32) -> u32| (0..n).map(f).collect::<Vec<u32>>();
        for (a, b, expected) in [
            (vec![0, 0, 1, 1], vec![0, 0, 1, 1], 1.0),
            (vec![0, 0, 1, 1], vec![5, 5, 3, 3], 1.0),
            (vec![0, 0, 1, 1], vec![0, 1, 0, 1], 0.0),
            (vec![0, 0, 0, 0], vec![0, 1, 2, 3], 0.0),
            (vec![0, 0, 1, 1, 2, 2], vec![0, 0, 1, 2, 2, 2], NMI_SIX),
            (long(1000, |i| i % 7), long(1000, |i| i * i % 5), NMI_SQUARES),
            (long(1000, |i| i / 100), long(1000, |i| i / 90), NMI_SHIFTED),
            (vec![3; 9], vec![4; 9], 1.0),
            (vec![], vec![], 1.0),
        ] {
            let found = nmi(&a, &b);
            assert!((found - expected).abs() < 1e-12, "{found} {expected}");
            assert!((nmi(&b, &a) - expected).abs() < 1e-12);
        }
    }

    // python3 -c "from sklearn.metrics import normalized_mutual_info_score as f; r = range(1000);
    // print(f([0,0,1,1,2,2], [0,0,1,2,2,2]), f([i%7 for i in r], [i*i%5 for i in r]),
    // f([i//100 for i in r], [i//90 for i in r]))"
    const NMI_SIX: f64 = 0.7396673768007592;
    const NMI_SQUARES: f64 = 3.967529795041645e-5;
    const NMI_SHIFTED: f64 = 0.805587481723951;

    #[test]
    fn purity_by_hand() {
        // Cluster 0 has classes 5, 5, 6; cluster 1 has 6, 6: four of five.
        assert_eq!(purity(&[0, 0, 0, 1, 1], &[5, 5, 6, 6, 6]), 0.8);
        assert_eq!(purity(&[], &[]), 1.0);
        let table = Table::new([(0, 5), (0, 5), (1, 6)]);
        assert_eq!((table.count(0, 5), table.count(1, 5), table.classes()), (2, 0, (2, 2)));
    }
}
