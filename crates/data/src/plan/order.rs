//! Orders of an epoch in which clusters come in given shares.

use tritrain_trit::rng::{Permutation, Stream};

/// Purposes of random numbers.
const PHASE: u32 = u32::from_be_bytes(*b"phas");
const CLUSTER: u64 = 1 << 62;
const BATCHES: u64 = 1 << 61;

/// The windows of an epoch in order, or by cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Order {
    windows: Vec<u64>,
    members: Vec<Vec<u64>>,
}

/// How many windows of each cluster an epoch shows.
pub(super) enum Quotas {
    /// Every window once.
    All,
    /// As many of each cluster as that allows, none more than some times: (times, windows in all).
    Balanced(u64, u64),
}

impl Quotas {
    pub(super) fn all() -> Quotas {
        Quotas::All
    }

    pub(super) fn balanced(times: u64, windows: u64) -> Quotas {
        Quotas::Balanced(times.max(1), windows)
    }

    /// Windows of each cluster, from how many it has.
    fn of(&self, sizes: &[u64]) -> Vec<u64> {
        let Quotas::Balanced(times, windows) = *self else { return sizes.to_vec() };
        // From the smallest on: what a cluster cannot take is shared by those that are left.
        let mut by_size: Vec<usize> = (0..sizes.len()).collect();
        by_size.sort_by_key(|&cluster| (sizes[cluster], cluster));
        let (mut left, mut quotas) = (windows, vec![0; sizes.len()]);
        for (done, &cluster) in by_size.iter().enumerate() {
            let share = left.div_ceil((sizes.len() - done) as u64);
            quotas[cluster] = share.min(sizes[cluster].saturating_mul(times)).min(left);
            left -= quotas[cluster];
        }
        quotas
    }
}

/// A permutation of the windows of a cluster, another for each pass over them.
pub(super) fn shuffled(seed: u64, epoch: u64, cluster: usize, pass: u64, len: u64) -> Permutation {
    let number = CLUSTER | (cluster as u64) << 44 | (epoch & 0xf_ffff) << 24 | (pass & 0xff_ffff);
    Permutation::new(seed, number, len)
}

impl Order {
    /// By cluster alone.
    pub(super) fn of(members: Vec<Vec<u64>>) -> Order {
        Order { windows: Vec::new(), members }
    }

    /// The windows of each cluster.
    pub(super) fn members(&self) -> &[Vec<u64>] {
        &self.members
    }

    /// The window at a place; places beyond the end begin again.
    pub(super) fn at(&self, place: u64) -> u64 {
        let len = self.windows.len().max(1) as u64;
        self.windows.get((place % len) as usize).copied().unwrap_or_default()
    }

    /// Windows of each cluster in a random order, at even distances: however many come first, clusters have
    /// their shares of them.
    pub(super) fn mixed(seed: u64, epoch: u64, members: Vec<Vec<u64>>, quotas: &Quotas) -> Order {
        let sizes: Vec<u64> = members.iter().map(|members| members.len() as u64).collect();
        let phases = Stream::new(seed, PHASE, epoch);
        let mut placed = Vec::new();
        for (cluster, (members, quota)) in members.iter().zip(quotas.of(&sizes)).enumerate() {
            let phase = f64::from(phases.uniform(cluster as u64));
            for at in 0..quota {
                let (pass, index) = (at / sizes[cluster], at % sizes[cluster]);
                let index = shuffled(seed, epoch, cluster, pass, sizes[cluster]).at(index);
                let place = (at as f64 + phase) / quota as f64;
                placed.push((place, cluster, members.get(index as usize).copied().unwrap_or_default()));
            }
        }
        placed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        Order { windows: placed.into_iter().map(|(_, _, window)| window).collect(), members: Vec::new() }
    }

    /// Batches of one cluster each, in random order, `epoch` windows together. What is left of each cluster
    /// makes mixed batches, as far as they are whole; the rest, less than a batch, is left out.
    pub(super) fn homogeneous(
        seed: u64,
        epoch: u64,
        members: Vec<Vec<u64>>,
        batch: u64,
        windows: u64,
    ) -> Order {
        let (mut batches, mut left) = (Vec::new(), Vec::new());
        for (cluster, members) in members.iter().enumerate() {
            let len = members.len() as u64;
            let order = shuffled(seed, epoch, cluster, 0, len);
            let windows = (0..len).map(|at| members.get(order.at(at) as usize).copied().unwrap_or_default());
            let windows: Vec<u64> = windows.collect();
            let (whole, rest) = windows.split_at((len / batch * batch) as usize);
            batches.extend(whole.chunks(batch as usize).map(<[u64]>::to_vec));
            left.extend_from_slice(rest);
        }
        batches.extend(left.chunks_exact(batch as usize).map(<[u64]>::to_vec));
        if batches.is_empty() {
            // Fewer windows than a batch.
            batches.push(left.iter().copied().cycle().take(batch as usize).collect());
        }
        let order = Permutation::new(seed, BATCHES | epoch, batches.len() as u64);
        let windows_of = |at: u64| batches.get(order.at(at) as usize).cloned().unwrap_or_default();
        let all: Vec<u64> = (0..batches.len() as u64).flat_map(windows_of).collect();
        debug_assert_eq!(all.len() as u64, windows);
        Order { windows: all, members: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(sizes: &[u64]) -> Vec<Vec<u64>> {
        let mut next = 0;
        let take = |&size: &u64| {
            next += size;
            (next - size..next).collect()
        };
        sizes.iter().map(take).collect()
    }

    fn cluster_of(sizes: &[u64], window: u64) -> usize {
        let mut before = 0;
        sizes
            .iter()
            .position(|size| {
                before += size;
                window < before
            })
            .unwrap()
    }

    #[test]
    fn every_window_comes_once_and_every_beginning_is_proportional() {
        let sizes = [500, 3, 0, 120, 41];
        let n: u64 = sizes.iter().sum();
        for epoch in 0..5 {
            let order = Order::mixed(7, epoch, members(&sizes), &Quotas::all());
            let mut sorted = order.windows.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..n).collect::<Vec<_>>());
            let mut counts = [0u64; 5];
            for (seen, &window) in (1..).zip(&order.windows) {
                counts[cluster_of(&sizes, window)] += 1;
                for (count, size) in counts.iter().zip(sizes) {
                    let expected = f64::from(seen) * size as f64 / n as f64;
                    // Each cluster is off by less than one, and so, through them, is the place.
                    assert!((*count as f64 - expected).abs() < 3.0, "{seen}: {counts:?}");
                }
            }
        }
        let [a, b] = [0, 1].map(|epoch| Order::mixed(7, epoch, members(&sizes), &Quotas::all()));
        assert!(a != b);
    }

    #[test]
    fn balanced_quotas_by_hand() {
        let quotas = |sizes: &[u64], times, windows| Quotas::balanced(times, windows).of(sizes);
        assert_eq!(quotas(&[10, 10], 1, 20), [10, 10]);
        // Two windows come four times, the rest is for the large one.
        assert_eq!(quotas(&[2, 98], 4, 100), [8, 92]);
        assert_eq!(quotas(&[40, 60], 4, 100), [50, 50]);
        assert_eq!(quotas(&[0, 30, 70], 2, 100), [0, 50, 50]);
        assert_eq!(quotas(&[1, 1, 98], 10, 100), [10, 10, 80]);
    }

    #[test]
    fn balanced_orders_repeat_as_often_as_allowed() {
        let sizes = [2, 98];
        let order = Order::mixed(1, 0, members(&sizes), &Quotas::balanced(4, 100));
        let count = |window: u64| order.windows.iter().filter(|at| **at == window).count();
        assert_eq!(order.windows.len(), 100);
        assert_eq!([count(0), count(1)], [4, 4]);
        assert!((2..100).all(|window| count(window) <= 1));
    }

    #[test]
    fn homogeneous_batches_hold_one_cluster() {
        let sizes = [100, 7, 0, 33, 25];
        let (n, batch) = (165, 8);
        let order = Order::homogeneous(3, 0, members(&sizes), batch, n / batch * batch);
        let mut seen = order.windows.clone();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len() as u64, n / batch * batch, "each window at most once");
        let pure = order.windows.chunks(8).filter(|windows| {
            windows.iter().all(|window| cluster_of(&sizes, *window) == cluster_of(&sizes, windows[0]))
        });
        // 12 + 0 + 4 + 3 whole batches; what is left makes one or two more.
        assert!(pure.count() >= 19);
        let few = Order::homogeneous(3, 0, members(&[2, 1]), 8, 8);
        assert_eq!(few.windows.len(), 8);
    }
}
