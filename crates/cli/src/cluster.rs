//! `tritrain cluster`: k-means of the rows of a matrix.

use std::{path::Path, process::ExitCode, time::Instant};

use serde_json::json;
use tritrain_backend::{Backend, Cpu};
use tritrain_cluster::{
    Fit, Method, MiniBatch, Options, Points, Start, Stop, Suggestion, fit, label, suggest,
};
use tritrain_files::{
    Disk, Storage,
    npy::{self, Matrix},
};

use crate::{
    args::{Cluster, ClusterMethod},
    error::{Error, Result},
    show,
};

pub(crate) fn run(args: &Cluster) -> Result<ExitCode> {
    match args.data.extension().and_then(|extension| extension.to_str()) {
        Some("npy") => matrix(args),
        _ => Err(Error::Usage {
            option: "data",
            found: args.data.display().to_string(),
            expected: "a matrix in an .npy file",
        }),
    }
}

/// What was asked for and what came out.
struct Clustering {
    fit: Fit,
    suggestion: Option<Suggestion>,
    /// Seconds of the fit, without reading and without the choice of k.
    seconds: f64,
}

fn matrix(args: &Cluster) -> Result<ExitCode> {
    let wanted = wanted(args)?;
    let data = npy::open(&Disk, &args.data)?;
    let backend = Cpu::new(args.threads)?;
    let clustering = match args.batch {
        None => backend.run(|| whole(args, wanted, &data, &backend))?,
        Some(batch) => backend.run(|| batches(args, wanted, batch, &data, &backend))?,
    };
    if let Some(dir) = &args.out {
        Disk.create_dir_all(dir)?;
        npy::write_labels(&Disk, &dir.join("labels.npy"), &clustering.fit.labels)?;
        npy::write(&Disk, &dir.join("centroids.npy"), &clustering.fit.centroids, data.columns())?;
    }
    report(args, &clustering, &data, &backend)?;
    Ok(ExitCode::SUCCESS)
}

/// The number of clusters asked for; none for auto.
fn wanted(args: &Cluster) -> Result<Option<usize>> {
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

fn upload(backend: &Cpu, values: &[f32]) -> <Cpu as Backend>::Floats {
    let mut floats = backend.floats(values.len());
    backend.upload(values, &mut floats);
    floats
}

fn whole(args: &Cluster, wanted: Option<usize>, data: &Matrix, backend: &Cpu) -> Result<Clustering> {
    let options = options(args);
    let init = args.init.as_ref().map(|path| npy::open(&Disk, path)).transpose()?;
    if let (Some(path), Some(init)) = (&args.init, &init) {
        let fits = init.columns() == data.columns() && wanted.is_none_or(|k| k == init.rows());
        if !fits {
            let k = wanted.unwrap_or(init.rows());
            return Err(in_file(path)(tritrain_cluster::Error::Shape {
                what: "the given centroids",
                expected: format!("{k} × {}", data.columns()),
                found: format!("{} × {}", init.rows(), init.columns()),
            }));
        }
    }
    let x = upload(backend, &data.read(0..data.rows()));
    let started = Instant::now();
    let shape = (data.rows(), data.columns());
    let mut points = Points::new(backend, x, shape, args.spherical).map_err(in_file(&args.data))?;
    let mut seconds = started.elapsed().as_secs_f64();
    let init = init.map(|init| init.read(0..init.rows()));
    let suggestion = match (wanted, &init) {
        (None, None) => Some(suggest(&points, &options).map_err(in_file(&args.data))?),
        _ => None,
    };
    let k = wanted.or(suggestion.as_ref().map(|suggestion| suggestion.k));
    let start = match &init {
        Some(centroids) => Start::Given(centroids),
        None => Start::Seeded(k.unwrap_or_default()),
    };
    let started = Instant::now();
    let fit = fit(&mut points, start, &options).map_err(in_file(&args.data))?;
    seconds += started.elapsed().as_secs_f64();
    Ok(Clustering { fit, suggestion, seconds })
}

/// Mini-batches: one pass that moves the centroids, and one that labels.
fn batches(
    args: &Cluster,
    wanted: Option<usize>,
    batch: usize,
    data: &Matrix,
    backend: &Cpu,
) -> Result<Clustering> {
    if batch == 0 {
        return Err(Error::Usage { option: "batch", found: "0".into(), expected: "1 row or more" });
    }
    let (options, started) = (options(args), Instant::now());
    let points = |first: usize| {
        let rows = first..data.rows().min(first + batch);
        let x = upload(backend, &data.read(rows.clone()));
        Points::new(backend, x, (rows.len(), data.columns()), false).map_err(in_file(&args.data))
    };
    let mut first = points(0)?;
    let suggestion = match wanted {
        None => Some(suggest(&first, &options).map_err(in_file(&args.data))?),
        Some(_) => None,
    };
    let k = wanted.or(suggestion.as_ref().map(|suggestion| suggestion.k)).unwrap_or_default();
    let mut centroids = MiniBatch::start(&mut first, k, &options).map_err(in_file(&args.data))?;
    let starts = || (0..data.rows()).step_by(batch);
    for at in starts().skip(1) {
        centroids.step(&mut points(at)?).map_err(in_file(&args.data))?;
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
            label(&mut points(at)?, centroids.centroids()).map_err(in_file(&args.data))?;
        fit.labels.extend(labels);
        fit.inertia += inertia;
    }
    Ok(Clustering { fit, suggestion, seconds: started.elapsed().as_secs_f64() })
}

fn report(args: &Cluster, clustering: &Clustering, data: &Matrix, backend: &Cpu) -> Result<()> {
    let Clustering { fit, suggestion, seconds } = clustering;
    let k = fit.centroids.len() / data.columns();
    let mut sizes = vec![0u64; k];
    for label in &fit.labels {
        sizes[*label as usize] += 1;
    }
    if let Some(Suggestion { curve, rows, .. }) = suggestion {
        show::line(&format!("silhouettes of {} of {} rows:", rows.1, rows.0))?;
        for candidate in curve {
            show::line(&format!("  k = {:<3} {:.4}", candidate.k, candidate.silhouette))?;
        }
    }
    let stop = match fit.stop {
        Stop::Labels => "no label changed",
        Stop::Shift => "centroids came to rest",
        Stop::Iterations => "all were done",
    };
    show::line(&format!(
        "{} × {} in {k} clusters of {} to {} rows: inertia {:.6e}, {} iterations ({stop}), {seconds:.3} s",
        show::thousands(data.rows() as u64),
        data.columns(),
        sizes.iter().min().unwrap_or(&0),
        sizes.iter().max().unwrap_or(&0),
        fit.inertia,
        fit.iterations,
    ))?;
    if let Some(dir) = &args.out {
        show::line(&format!("labels.npy and centroids.npy lie in {}", dir.display()))?;
    }
    if args.json {
        let curve = suggestion.as_ref().map(|suggestion| {
            let point = |c: &tritrain_cluster::Candidate| {
                json!({ "k": c.k, "silhouette": c.silhouette, "inertia": c.inertia })
            };
            suggestion.curve.iter().map(point).collect::<Vec<_>>()
        });
        show::json(&json!({
            "seconds": seconds,
            "inertia": fit.inertia,
            "iterations": fit.iterations,
            "k": k,
            "sizes": sizes,
            "skipped": fit.skipped,
            "curve": curve,
            "threads": backend.threads(),
            "tier": backend.tier().name(),
        }))?;
    }
    Ok(())
}
