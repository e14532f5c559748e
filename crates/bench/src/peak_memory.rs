//! The largest resident set of this process, where the system says (Linux: `VmHWM`).

use std::fs;

/// Largest resident set so far, or since [`forget`].
pub fn bytes() -> Option<usize> {
    line("VmHWM:")
}

/// The resident set now.
pub(crate) fn now() -> Option<usize> {
    line("VmRSS:")
}

fn line(name: &str) -> Option<usize> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

/// Counts from what is resident now. Does nothing where the system cannot.
pub fn forget() {
    // The file is no file on any disk: see proc(5), clear_refs.
    let _ = fs::write("/proc/self/clear_refs", "5");
}
