//! `tritrain cluster` of text: from documents to vectors to a table of clusters and files about them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;
use serde_json::{Value, json};
use tritrain_backend::{Backend, Cpu};
use tritrain_data::Source;
use tritrain_data::clusters::{
    Clustering, Clusters, Description, Duplicates, RESEMBLANCE, Shingles, candidates, describe, duplicates,
};
use tritrain_data::embed::{Fit, Fitted, Passage, PassageText, Vectors, visit};
use tritrain_files::npy::{self, Matrix, Writer};
use tritrain_files::{Disk, NewFile, Storage, write_atomic};
use tritrain_train::{Loaded, STOPPED, load};

use crate::args::Cluster;
use crate::cluster::{self, Rows};
use crate::error::{Error, Result};
use crate::proxy::{self, PROXY};
use crate::{map, show};

/// The embedding by words.
const TFIDF: &str = "tfidf";
/// Bytes of lines that are written at once.
const LINES: usize = 1 << 20;

/// Passages and their vectors.
struct Embedded {
    passages: Vec<Passage>,
    domains: Vec<String>,
    vectors: Values,
    dim: usize,
}

/// Vectors in memory, or in a file of `--out`.
enum Values {
    Memory(Vec<f32>),
    File(Matrix),
}

impl Values {
    fn all(&self) -> &[f32] {
        match self {
            Values::Memory(values) => values,
            Values::File(matrix) => matrix.floats().unwrap_or_default(),
        }
    }
}

/// Seconds that the parts took.
#[derive(Serialize)]
struct Seconds {
    count: f64,
    embed: f64,
    cluster: f64,
}

/// Embeds, clusters, describes, saves and prints.
pub(crate) fn run(args: &Cluster) -> Result<ExitCode> {
    let usage = |option, found: String, expected| Err(Error::Usage { option, found, expected });
    let wanted = cluster::wanted(args)?;
    if let Some(threshold) = args.duplicates.filter(|threshold| !(*threshold > 0.0 && *threshold <= 1.0)) {
        return usage("duplicates", threshold.to_string(), "a cosine above 0 and up to 1");
    }
    if let Some(path) = &args.init {
        return usage("init", path.display().to_string(), "nothing for text, whose vectors are made here");
    }
    let source = Source::Paths(args.data.clone());
    if let Some(dir) = &args.out {
        Disk.create_dir_all(dir)?;
    }
    let backend = Cpu::new(args.threads)?;
    let model = match args.embedding.as_str() {
        TFIDF => None,
        PROXY => match proxy::train(args, &backend)? {
            None => return Ok(ExitCode::from(u8::try_from(STOPPED).unwrap_or(1))),
            model => model,
        },
        path => Some(load(&Disk, Path::new(path))?),
    };
    backend.run(|| {
        let started = Instant::now();
        let fitted = fit(args, &source, model.as_ref())?;
        let count = started.elapsed().as_secs_f64();
        let embedded = embed(args, &source, &fitted)?;
        let embed = started.elapsed().as_secs_f64() - count;
        let path = args.data.first().map(PathBuf::as_path).unwrap_or(Path::new("text"));
        let rows = Rows::Memory(embedded.vectors.all(), embedded.dim, path);
        let clustering = cluster::cluster(args, wanted, rows, &backend)?;
        let seconds = Seconds { count, embed, cluster: clustering.seconds };
        finish(args, &source, fitted, &embedded, &clustering, &seconds)
    })
}

fn fit<'m>(args: &Cluster, source: &Source, model: Option<&'m Loaded>) -> Result<Fitted<'m>> {
    let documents = source.open()?;
    let mut fit = match model {
        None => Fit::words(documents, args.seed)?,
        Some(model) => Fit::tokens(documents, &model.tokenizer, model.embedding()?, model.config.dim)?,
    };
    let bar = show::Progress::new("counting", fit.documents().bytes_total(), 0);
    while fit.advance()? {
        bar.bytes(fit.documents().bytes_read());
    }
    bar.clear();
    Ok(fit.finish()?)
}

fn embed(args: &Cluster, source: &Source, fitted: &Fitted<'_>) -> Result<Embedded> {
    let (dim, rows) = (fitted.embedder.dim(), fitted.passages as usize);
    let path = args.out.as_ref().map(|dir| dir.join("vectors.npy"));
    let mut writer = path.as_ref().map(|path| Writer::create(&Disk, path, rows, dim)).transpose()?;
    let mut memory = Vec::new();
    let mut pass = Vectors::new(fitted, source.open()?)?;
    let bar = show::Progress::new("embedding", pass.documents().bytes_total(), 0);
    let mut out = |values: &[f32]| match &mut writer {
        Some(writer) => Ok(writer.push(values)?),
        None => {
            memory.extend_from_slice(values);
            Ok(())
        }
    };
    while pass.advance(&mut out)? {
        bar.bytes(pass.documents().bytes_read());
    }
    bar.clear();
    let (passages, domains) = pass.finish()?;
    let vectors = match (writer, path) {
        (Some(writer), Some(path)) => {
            writer.finish()?;
            Values::File(npy::open(&Disk, &path)?)
        }
        _ => Values::Memory(memory),
    };
    show::note(&format!("{} passages embedded in {dim} dimensions", show::thousands(rows as u64)));
    Ok(Embedded { passages, domains, vectors, dim })
}

fn finish(
    args: &Cluster,
    source: &Source,
    fitted: Fitted<'_>,
    of: &Embedded,
    found: &cluster::Clustering,
    seconds: &Seconds,
) -> Result<ExitCode> {
    let fit = &found.fit;
    let clustering = Clustering::new(of.vectors.all(), of.dim, &fit.labels, &fit.centroids)?;
    let dropped = args.duplicates.map(|threshold| near(source, &clustering, threshold)).transpose()?;
    let mut lines = match &args.out {
        Some(dir) => Some(Lines::new(dir, of, &fit.labels, dropped.as_ref())?),
        None => None,
    };
    let each = |passage: PassageText<'_>| lines.as_mut().map_or(Ok(()), |lines| lines.add(passage));
    let description = describe(&clustering, source.open()?, &of.passages, &of.domains, args.seed, each)?;
    let mut result = report(&fitted, &description, dropped.as_ref());
    result["curve"] = json!(cluster::curve(found.suggestion.as_ref()));
    result["seconds"] = json!(seconds);
    cluster::show_curve(found.suggestion.as_ref())?;
    for line in table(&fitted, of, &description, dropped.as_ref()) {
        show::line(&line)?;
    }
    if let (Some(dir), Some(lines)) = (&args.out, lines) {
        lines.finish()?;
        cluster::save(dir, fit, of.dim)?;
        let names: Vec<String> = description.clusters.iter().map(|cluster| cluster.name.clone()).collect();
        map::draw(&dir.join("map.svg"), of.vectors.all(), of.dim, &fit.labels, &names)?;
        let clusters = Clusters::new(fitted.embedder, fit.centroids.clone(), names)?;
        clusters.save(&Disk, &dir.join("clusters.safetensors"))?;
        let text = serde_json::to_string_pretty(&result).unwrap_or_default();
        write_atomic(&Disk, &dir.join("clusters.json"), text.as_bytes())?;
        show::line(&format!("vectors, passages, clusters and their map.svg lie in {}", dir.display()))?;
    }
    if args.json {
        show::json(&result)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Near-duplicates, whose words come from another pass over the text.
fn near(source: &Source, clustering: &Clustering<'_>, threshold: f32) -> Result<Duplicates> {
    let candidates = candidates(clustering, threshold)?;
    let mut left = candidates.iter().peekable();
    let mut shingles = BTreeMap::new();
    visit(source.open()?, |passage| {
        if let Some(&candidate) = left.next_if(|next| **next as usize == passage.index) {
            shingles.insert(candidate, Shingles::of(passage.text));
        }
        Ok(())
    })?;
    Ok(duplicates(clustering, threshold, &shingles)?)
}

fn report(fitted: &Fitted<'_>, description: &Description, dropped: Option<&Duplicates>) -> Value {
    let mut result = json!({
        "passages": fitted.passages,
        "bytes": fitted.bytes,
        "dim": fitted.embedder.dim(),
        "k": description.clusters.len(),
        "nmi": description.nmi,
        "purity": description.purity,
        "clusters": description.clusters,
    });
    if let Some(dropped) = dropped {
        result["duplicates"] = json!({ "dropped": dropped.dropped.len(), "clusters": dropped.clusters });
    }
    result
}

/// What is printed.
fn table(
    fitted: &Fitted<'_>,
    of: &Embedded,
    description: &Description,
    dropped: Option<&Duplicates>,
) -> Vec<String> {
    let documents = of.passages.last().map_or(0, |last| u64::from(last.document) + 1);
    let mut lines = vec![format!(
        "{} passages of {} documents, {:.1} MB of text, {} domain(s), in {} clusters",
        show::thousands(fitted.passages),
        show::thousands(documents),
        fitted.bytes as f64 / 1e6,
        of.domains.len(),
        description.clusters.len()
    )];
    let domain = |name: &str| name.chars().take(24).collect::<String>();
    lines.push(format!(
        "{:>4}  {:>9}  {:>8}  {:32}  {}",
        "", "passages", "MB", "most frequent domains", "words"
    ));
    for (index, cluster) in description.clusters.iter().enumerate() {
        let mut domains = String::new();
        for share in cluster.domains.iter().take(2) {
            let percent = 100.0 * share.passages as f64 / cluster.passages as f64;
            if domains.is_empty() || percent >= 10.0 {
                let comma = if domains.is_empty() { "" } else { ", " };
                let _ = write!(domains, "{comma}{} {percent:.0} %", domain(&share.domain));
            }
        }
        lines.push(format!(
            "{index:>4}  {:>9}  {:>8.1}  {domains:32}  {}",
            show::thousands(cluster.passages),
            cluster.bytes as f64 / 1e6,
            cluster.words.join(" ")
        ));
        if let Some(nearest) = cluster.nearest.first() {
            lines.push(format!("{:27}for example {}: {}", "", nearest.document, nearest.opening));
        }
    }
    if let (Some(nmi), Some(purity)) = (description.nmi, description.purity) {
        lines.push(format!("agreement with the domains: NMI {nmi:.3}, purity {purity:.3}"));
    }
    if let Some(dropped) = dropped {
        lines.push(format!(
            "near-duplicates: {} of {} passages share {RESEMBLANCE} of their 5-word shingles with one that is kept",
            show::thousands(dropped.dropped.len() as u64),
            show::thousands(fitted.passages)
        ));
    }
    lines
}

/// `passages.jsonl`: a line for each passage, in the order of the vectors.
struct Lines<'a> {
    file: NewFile<'static>,
    text: String,
    of: &'a Embedded,
    labels: &'a [u32],
    /// To drop, in order.
    dropped: std::iter::Peekable<std::slice::Iter<'a, u32>>,
    duplicates: bool,
}

impl<'a> Lines<'a> {
    fn new(dir: &Path, of: &'a Embedded, labels: &'a [u32], dropped: Option<&'a Duplicates>) -> Result<Self> {
        let path = dir.join("passages.jsonl");
        let duplicates = dropped.is_some();
        let dropped = dropped.map(|dropped| dropped.dropped.iter()).unwrap_or_default().peekable();
        let file = NewFile::create(&Disk, &path)?;
        Ok(Lines { file, text: String::new(), of, labels, dropped, duplicates })
    }

    fn add(&mut self, passage: PassageText<'_>) -> tritrain_data::Result<()> {
        let place = self.of.passages.get(passage.index);
        let mut line = json!({
            "document": place.map(|place| place.document),
            "domain": passage.document.domain,
            "name": passage.document.name,
            "start": place.map(|place| place.start),
            "bytes": passage.text.len(),
            "cluster": self.labels.get(passage.index),
        });
        if self.duplicates {
            line["dropped"] = json!(self.dropped.next_if(|next| **next as usize == passage.index).is_some());
        }
        let _ = writeln!(self.text, "{line}");
        if self.text.len() > LINES {
            self.file.write(self.text.as_bytes())?;
            self.text.clear();
        }
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.file.write(self.text.as_bytes())?;
        Ok(self.file.finish()?)
    }
}
