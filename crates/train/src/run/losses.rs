//! What a batch lost, by the cluster of its windows.

use std::collections::BTreeMap;

use tritrain_data::Window;

use crate::evaluate::measured;

/// The commonest cluster of a batch, and the mean loss of each over its targets, from the losses and targets of all
/// positions, `[window][time]`.
pub(super) fn by_cluster(
    windows: &[Window],
    losses: &[f32],
    targets: &[u32],
) -> (Option<u32>, BTreeMap<u32, f32>) {
    let context = (losses.len() / windows.len().max(1)).max(1);
    let mut sums: BTreeMap<u32, (f64, u64, u32)> = BTreeMap::new();
    let rows = losses.chunks_exact(context).zip(targets.chunks_exact(context));
    for (window, (losses, targets)) in windows.iter().zip(rows) {
        let (sum, tokens, count) = sums.entry(window.cluster.unwrap_or_default()).or_default();
        let (nats, measured) = measured(losses, targets);
        (*sum, *tokens, *count) = (*sum + nats, *tokens + measured, *count + 1);
    }
    let most = sums.iter().max_by_key(|(cluster, (.., count))| (*count, std::cmp::Reverse(**cluster)));
    let cluster = most.map(|(cluster, _)| *cluster);
    let learnt = sums.into_iter().filter(|(_, (_, tokens, _))| *tokens > 0);
    let mean = |(sum, tokens, _): (f64, u64, u32)| (sum / tokens as f64) as f32;
    (cluster, learnt.map(|(cluster, sum)| (cluster, mean(sum))).collect())
}
