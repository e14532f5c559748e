//! `tritrain doctor`: what this machine offers, and whether its kernels compute what they should.

use std::process::ExitCode;

use serde_json::json;
use tritrain_backend::Tier;
use tritrain_bench::self_test;

use crate::{
    args::Doctor,
    error::{Error, Result},
    show,
};

pub(crate) fn run(args: &Doctor) -> Result<ExitCode> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let tiers: Vec<&str> = Tier::available().iter().map(|tier| tier.name()).collect();
    let tier = Tier::detect()?.name();
    show::line(&format!("{} {}, {threads} core(s)", std::env::consts::ARCH, std::env::consts::OS))?;
    show::line(&format!("kernels: {}; in use: {tier}", tiers.join(", ")))?;
    let mut checks = Vec::new();
    if args.self_test {
        show::line(&format!("{:12} {:26} {:>9} {:>6} {:>8}", "tier", "kernel", "cases", "wrong", "seconds"))?;
        let mut shown = Ok(());
        checks = self_test(args.cases, |check| {
            let row = show::line(&format!(
                "{:12} {:26} {:9} {:6} {:8.1}",
                check.tier, check.kernel, check.cases, check.wrong, check.seconds
            ));
            shown = std::mem::replace(&mut shown, Ok(())).and(row);
        })?;
        shown?;
    }
    let wrong: u64 = checks.iter().map(|check| check.wrong).sum();
    if args.self_test {
        show::line(&match wrong {
            0 => format!("all {} kernels equal the portable ones bit for bit", checks.len()),
            _ => format!("{wrong} cases are wrong: set TRITRAIN_TIER=scalar and report this table"),
        })?;
    }
    if args.json {
        show::json(&json!({ "threads": threads, "tiers": tiers, "tier": tier, "checks": checks }))?;
    }
    if wrong > 0 { Err(Error::SelfTest(wrong)) } else { Ok(ExitCode::SUCCESS) }
}
