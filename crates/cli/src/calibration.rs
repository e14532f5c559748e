//! Where the costs of single operations are kept: in the user's cache, for each machine its own.

use std::path::{Path, PathBuf};

use tritrain_dispatch::{Calibration, Config, Dispatcher};
use tritrain_files::{Disk, Storage, write_atomic};

use crate::{args::Device, devices, error::Result, show};

/// Bytes of a calibration at most.
const MOST: u64 = 1 << 20;

/// A dispatcher with the calibration of last time, or a new one, which is then kept; and where it lies.
pub(crate) fn dispatcher(config: Config) -> Result<(Dispatcher, Option<PathBuf>)> {
    let path = path();
    let known = path.as_deref().and_then(|path| match read(path) {
        Ok(known) => known,
        Err(why) => {
            show::note(&format!("{} is not used and replaced: {why}", path.display()));
            None
        }
    });
    let dispatcher = Dispatcher::new(config, devices::engine(&Device::default())?, known)
        .map_err(tritrain_bench::BenchError::from)?;
    let kept = path.filter(|_| dispatcher.is_renewed());
    if let Some(path) = &kept
        && let Err(error) = write(path, &dispatcher.calibration())
    {
        show::note(&format!("the calibration is not kept: {error}"));
    }
    Ok((dispatcher, self::path()))
}

/// `tritrain/calibration.json` in the folder for caches that the system or the user names.
fn path() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = folder("XDG_CACHE_HOME")
        .or_else(|| folder("LOCALAPPDATA"))
        .or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(caches.join("tritrain").join("calibration.json"))
}

fn read(path: &Path) -> Result<Option<Calibration>, String> {
    let told = |error: tritrain_files::Error| error.to_string();
    if !Disk.exists(path).map_err(told)? {
        return Ok(None);
    }
    let len = Disk.len(path).map_err(told)?;
    if len > MOST {
        return Err(format!("it has {len} bytes, expected at most {MOST}"));
    }
    let bytes = Disk.read(path).map_err(told)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("it is no calibration: {error}"))
}

fn write(path: &Path, calibration: &Calibration) -> Result<(), String> {
    let text = serde_json::to_string_pretty(calibration).map_err(|error| error.to_string())?;
    let folder = path.parent().unwrap_or(path);
    Disk.create_dir_all(folder)
        .and_then(|()| write_atomic(&Disk, path, text.as_bytes()))
        .map_err(|error| error.to_string())
}
