//! A proxy: a small model trained on a text for a short time, for the sake of its token embedding.

use tritrain_backend::{Backend, Cpu};
use tritrain_files::{Disk, Storage};
use tritrain_train::{Config, Loaded, Run, Signals, Workplace, load};

use crate::{
    args::Cluster,
    commands,
    devices::On,
    error::{Error, Result},
    prepare, show,
};

/// The embedding by a proxy, and its folder below that of the clusters.
pub(crate) const PROXY: &str = "proxy";

/// Trains the default model on the text to be clustered: in the folder `proxy` of `--out`, where it is found
/// again, or in one that is gone afterwards. `None` where a signal came first.
pub(crate) fn train(args: &Cluster, backend: &Cpu) -> Result<Option<Loaded>> {
    let mut config = Config::default();
    config.data.paths = args.data.iter().map(|path| path.display().to_string()).collect();
    (config.run.tokens, config.run.seed, config.run.keep) = (args.proxy_tokens, args.seed, 1);
    (config.run.eval_every, config.run.sample_every, config.run.checkpoint_every) = (0, 0, 0);
    // A small text has too little to hold out with less.
    config.data.validation = 0.1;
    config.check()?;
    let temporary;
    let dir = match &args.out {
        Some(out) => out.join(PROXY),
        None => {
            temporary = tempfile::tempdir().map_err(Error::Temporary)?;
            temporary.path().to_owned()
        }
    };
    Disk.create_dir_all(&dir)?;
    let signals = Signals::watch()?;
    let workplace = Workplace::resume(&Disk, &dir, config.clone())?;
    let corpus = prepare::corpus(&Disk, &config, &dir, workplace.step().is_some())?;
    let outcome = backend.run(|| {
        commands::drive(&On::from(backend), || Run::new(backend, &Disk, workplace, &corpus), &signals)
    })?;
    if outcome.stopped {
        show::note(&format!("stopped at step {} of the proxy", outcome.steps));
        return Ok(None);
    }
    Ok(Some(load(&Disk, &dir)?))
}
