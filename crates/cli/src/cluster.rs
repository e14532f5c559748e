//! `tritrain cluster`: k-means of the rows of a matrix. Of text, see `clusters`.

use std::{ops::Range, path::Path, process::ExitCode, time::Instant};

use serde_json::{Value, json};
use tritrain_backend::{Backend, Cpu, Memory};
use tritrain_cluster::{
    Candidate, Fit, Method, MiniBatch, Options, Points, Start, Stop, Suggestion, fit, label, suggest,
};
use tritrain_files::{
    Disk, Storage,
    npy::{self, Matrix},
};

use crate::{
    args::{Cluster, ClusterMethod},
    clusters,
    error::{Error, Result},
    show,
};

pub(crate) fn run(args: &Cluster) -> Result<ExitCode> {
    match &args.data[..] {
        [path] if path.extension().is_some_and(|extension| extension == "npy") => matrix(args, path),
        _ => clusters::run(args),
    }
}

/// Rows to cluster.
#[derive(Clone, Copy)]
pub(crate) enum Rows<'a> {
    /// Of a file, which errors name.
    File(&'a Matrix, &'a Path),
    /// Values `[rows][columns]` made from the text there.
    Memory(&'a [f32], usize, &'a Path),
}

impl<'a> Rows<'a> {
    fn shape(&self) -> (usize, usize) {
        match self {
            Rows::File(matrix, _) => (matrix.rows(), matrix.columns()),
            Rows::Memory(values, columns, _) => (values.len() / columns, *columns),
        }
    }

    fn read(&self, rows: Range<usize>) -> Vec<f32> {
        match self {
            Rows::File(matrix, _) => matrix.read(rows),
            Rows::Memory(values, columns, _) => values[rows.start * columns..rows.end * columns].to_vec(),
        }
    }

    fn path(&self) -> &'a Path {
        match self {
            Rows::File(_, path) | Rows::Memory(_, _, path) => path,
        }
    }
}

/// What came out.
pub(crate) struct Clustering {
    pub(crate) fit: Fit,
    pub(crate) suggestion: Option<Suggestion>,
    /// Seconds of the fit, without reading and without the choice of k.
    pub(crate) seconds: f64,
}

fn matrix(args: &Cluster, path: &Path) -> Result<ExitCode> {
    let wanted = wanted(args)?;
    let data = npy::open(&Disk, path)?;
    let backend = Cpu::new(args.threads)?;
    let rows = Rows::File(&data, path);
    let clustering = backend.run(|| cluster(args, wanted, rows, &backend))?;
    if let Some(dir) = &args.out {
        Disk.create_dir_all(dir)?;
        save(dir, &clustering.fit, data.columns())?;
    }
    report(args, &clustering, rows.shape(), &backend)?;
    Ok(ExitCode::SUCCESS)
}

/// Clusters rows as the arguments say.
pub(crate) fn cluster(
    args: &Cluster,
    wanted: Option<usize>,
    rows: Rows<'_>,
    backend: &Cpu,
) -> Result<Clustering> {
    match args.batch {
        None => whole(args, wanted, rows, backend),
        Some(batch) => batches(args, wanted, batch, rows, backend),
    }
}

/// Writes labels and centroids.
pub(crate) fn save(dir: &Path, fit: &Fit, columns: usize) -> Result<()> {
    npy::write_labels(&Disk, &dir.join("labels.npy"), &fit.labels)?;
    Ok(npy::write(&Disk, &dir.join("centroids.npy"), &fit.centroids, columns)?)
}

/// The number of clusters asked for; none for auto.
pub(crate) fn wanted(args: &Cluster) -> Result<Option<usize>> {
    match args.k.as_str() {
        "auto" => Ok(None),
        k => k.parse().map(Some).map_err(|_| Error::Usage {
            option: "k",
            found: k.to_owned(),
            expected: "a number of clusters, or auto",
        }),
    }
}

fn options(args: &Cluster) -> Options {
    let method = match args.method {
        ClusterMethod::Auto => Method::Auto,
        ClusterMethod::Lloyd => Method::Lloyd,
        ClusterMethod::Bounds => Method::Bounds,
    };
    Options { iterations: args.iterations, tolerance: args.tolerance, method, seed: args.seed }
}

/// Names the file that an error is about.
fn in_file(path: &Path) -> impl Fn(tritrain_cluster::Error) -> Error + '_ {
    move |source| Error::Cluster { path: path.to_path_buf(), source }
}

fn upload(backend: &Cpu, values: &[f32]) -> <Cpu as Memory>::Floats {
    let mut floats = backend.floats(values.len());
    backend.upload(values, &mut floats);
    floats
}

fn whole(args: &Cluster, wanted: Option<usize>, data: Rows<'_>, backend: &Cpu) -> Result<Clustering> {
    let (options, (rows, columns)) = (options(args), data.shape());
    let init = args.init.as_ref().map(|path| npy::open(&Disk, path)).transpose()?;
    if let (Some(path), Some(init)) = (&args.init, &init) {
        let fits = init.columns() == columns && wanted.is_none_or(|k| k == init.rows());
        if !fits {
            let k = wanted.unwrap_or(init.rows());
            return Err(in_file(path)(tritrain_cluster::Error::Shape {
                what: "the given centroids",
                expected: format!("{k} × {}", columns),
                found: format!("{} × {}", init.rows(), init.columns()),
            }));
        }
    }
    let x = upload(backend, &data.read(0..rows));
    let started = Instant::now();
    let mut points =
        Points::new(backend, x, (rows, columns), args.spherical).map_err(in_file(data.path()))?;
    let mut seconds = started.elapsed().as_secs_f64();
    let init = init.map(|init| init.read(0..init.rows()));
    let suggestion = match (wanted, &init) {
        (None, None) => Some(suggest(&points, &options).map_err(in_file(data.path()))?),
        _ => None,
    };
    let k = wanted.or(suggestion.as_ref().map(|suggestion| suggestion.k));
    let start = match &init {
        Some(centroids) => Start::Given(centroids),
        None => Start::Seeded(k.unwrap_or_default()),
    };
    let started = Instant::now();
    let fit = fit(&mut points, start, &options).map_err(in_file(data.path()))?;
    seconds += started.elapsed().as_secs_f64();
    Ok(Clustering { fit, suggestion, seconds })
}

/// Mini-batches: one pass that moves the centroids, and one that labels.
fn batches(
    args: &Cluster,
    wanted: Option<usize>,
    batch: usize,
    data: Rows<'_>,
    backend: &Cpu,
) -> Result<Clustering> {
    if batch == 0 {
        return Err(Error::Usage { option: "batch", found: "0".into(), expected: "1 row or more" });
    }
    let (options, started, (all, columns)) = (options(args), Instant::now(), data.shape());
    let points = |first: usize| {
        let rows = first..all.min(first + batch);
        let x = upload(backend, &data.read(rows.clone()));
        Points::new(backend, x, (rows.len(), columns), args.spherical).map_err(in_file(data.path()))
    };
    let mut first = points(0)?;
    let suggestion = match wanted {
        None => Some(suggest(&first, &options).map_err(in_file(data.path()))?),
        Some(_) => None,
    };
    let k = wanted.or(suggestion.as_ref().map(|suggestion| suggestion.k)).unwrap_or_default();
    let mut centroids = MiniBatch::start(&mut first, k, &options).map_err(in_file(data.path()))?;
    let starts = || (0..all).step_by(batch);
    for at in starts().skip(1) {
        centroids.step(&mut points(at)?).map_err(in_file(data.path()))?;
    }
    let mut fit = Fit {
        labels: Vec::new(),
        centroids: centroids.centroids().to_vec(),
        inertia: 0.0,
        iterations: starts().count(),
        stop: Stop::Iterations,
        skipped: 0,
    };
    for at in starts() {
        let (labels, inertia) =
            label(&mut points(at)?, centroids.centroids()).map_err(in_file(data.path()))?;
        fit.labels.extend(labels);
        fit.inertia += inertia;
    }
    Ok(Clustering { fit, suggestion, seconds: started.elapsed().as_secs_f64() })
}

fn report(
    args: &Cluster,
    clustering: &Clustering,
    (rows, columns): (usize, usize),
    backend: &Cpu,
) -> Result<()> {
    let Clustering { fit, suggestion, seconds } = clustering;
    let k = fit.centroids.len() / columns;
    let mut sizes = vec![0u64; k];
    for label in &fit.labels {
        sizes[*label as usize] += 1;
    }
    show_curve(suggestion.as_ref())?;
    let stop = match fit.stop {
        Stop::Labels => "no label changed",
        Stop::Shift => "centroids came to rest",
        Stop::Iterations => "all were done",
    };
    show::line(&format!(
        "{} × {} in {k} clusters of {} to {} rows: inertia {:.6e}, {} iterations ({stop}), {seconds:.3} s",
        show::thousands(rows as u64),
        columns,
        sizes.iter().min().unwrap_or(&0),
        sizes.iter().max().unwrap_or(&0),
        fit.inertia,
        fit.iterations,
    ))?;
    if let Some(dir) = &args.out {
        show::line(&format!("labels.npy and centroids.npy lie in {}", dir.display()))?;
    }
    if args.json {
        show::json(&json!({
            "seconds": seconds,
            "inertia": fit.inertia,
            "iterations": fit.iterations,
            "k": k,
            "sizes": sizes,
            "skipped": fit.skipped,
            "curve": curve(suggestion.as_ref()),
            "threads": backend.threads(),
            "tier": backend.tier().name(),
        }))?;
    }
    Ok(())
}

/// The choice of k, where there was one.
pub(crate) fn show_curve(suggestion: Option<&Suggestion>) -> Result<()> {
    let Some(Suggestion { curve, rows, .. }) = suggestion else { return Ok(()) };
    show::line(&format!("silhouettes of {} of {} rows:", rows.1, rows.0))?;
    for candidate in curve {
        show::line(&format!("  k = {:<3} {:.4}", candidate.k, candidate.silhouette))?;
    }
    Ok(())
}

/// The same as JSON.
pub(crate) fn curve(suggestion: Option<&Suggestion>) -> Option<Vec<Value>> {
    let point = |c: &Candidate| json!({ "k": c.k, "silhouette": c.silhouette, "inertia": c.inertia });
    suggestion.map(|suggestion| suggestion.curve.iter().map(point).collect())
}
