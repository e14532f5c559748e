//! The tiles of kernels that are fast on a device: measured once, and kept in the user's cache.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tritrain_backend::Backend;
use tritrain_gpu::{Class, Gpu, Tiles};

use crate::{cache, show};

const WHAT: &str = "choice of tiles";

/// Grows when tiles come to mean something else.
const VERSION: u32 = 1;

/// What is kept: tiles by device, driver and program.
#[derive(Default, Serialize, Deserialize)]
struct Kept {
    version: u32,
    devices: BTreeMap<String, Tiles>,
}

/// A device with the tiles that are fast on it. A software device keeps those of its class: it is for tests.
pub(crate) fn ready(mut gpu: Gpu) -> Gpu {
    if gpu.adapter().class == Class::Software {
        return gpu;
    }
    let path = cache::path("tiles.json");
    let kept = path.as_deref().and_then(|path| cache::read::<Kept>(path, WHAT));
    let mut kept = kept.filter(|kept| kept.version == VERSION).unwrap_or_default();
    let device = format!("{}, tritrain {}", gpu.adapter(), env!("CARGO_PKG_VERSION"));
    if let Some(tiles) = kept.devices.get(&device).filter(|tiles| tiles.are_known()) {
        return gpu.with_tiles(*tiles);
    }
    let tuned = gpu.tune();
    // A device that fails says so where it is used.
    if gpu.fault().is_none() {
        show::note(&format!("measured which tiles are fast on {device}: {}", tuned.tiles.describe()));
        (kept.version, _) = (VERSION, kept.devices.insert(device, tuned.tiles));
        if let Some(path) = &path {
            cache::write(path, WHAT, &kept);
        }
    }
    gpu
}
