//! From paths to the list of files, in an order that depends on names only.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use super::kinds::{Kind, Packing, kind_of};
use crate::{Error, Result};

/// Files that were found below the given paths and are not read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// Files and folders whose name starts with a dot.
    pub hidden: u64,
    /// Files of unknown kind.
    pub unknown: u64,
    /// Files that were reached before, through another path or a link.
    pub repeated: u64,
}

/// One file to read.
#[derive(Clone, Debug)]
pub(crate) struct FoundFile {
    pub(crate) path: PathBuf,
    pub(crate) kind: Kind,
    pub(crate) packing: Packing,
    pub(crate) domain: String,
    /// Path below the given one: the document's name, or the start of it.
    pub(crate) name: String,
    /// Size on disk.
    pub(crate) bytes: u64,
    /// Time of last change, nanoseconds since 1970.
    pub(crate) modified: u128,
}

/// The files below the paths: the paths in the order given, folders in the order of names.
pub(crate) fn find(paths: &[PathBuf]) -> Result<(Vec<FoundFile>, Skipped)> {
    let mut finder = Finder { files: Vec::new(), skipped: Skipped::default(), seen: HashSet::new() };
    for path in paths {
        let meta = std::fs::metadata(path).map_err(|e| Error::read(path, e))?;
        if meta.is_dir() { finder.folder(path)? } else { finder.file(path, &meta)? }
    }
    Ok((finder.files, finder.skipped))
}

struct Finder {
    files: Vec<FoundFile>,
    skipped: Skipped,
    seen: HashSet<PathBuf>,
}

impl Finder {
    /// A file that was named: it must be readable text.
    fn file(&mut self, path: &Path, meta: &std::fs::Metadata) -> Result<()> {
        let name = base_name(path);
        let known = kind_of(&name).filter(|_| meta.is_file());
        let Some((kind, packing, stem)) = known else {
            let found = match path.extension() {
                _ if !meta.is_file() => "something that is no regular file".to_owned(),
                Some(end) => format!(".{}", end.to_string_lossy()),
                None => "no ending".to_owned(),
            };
            return Err(Error::Kind { path: path.to_path_buf(), found });
        };
        let domain = stem.to_owned();
        self.add(path, kind, packing, domain, name.clone(), meta)
    }

    fn folder(&mut self, root: &Path) -> Result<()> {
        let own_name = base_name(root);
        let mut walk = WalkDir::new(root).follow_links(true).min_depth(1).sort_by_file_name().into_iter();
        while let Some(entry) = walk.next() {
            let entry = entry.map_err(|e| {
                let path = e.path().unwrap_or(root).to_path_buf();
                let hint = "if it is a link to a folder above itself, or to nothing, remove it";
                Error::Read { path, source: e.into(), hint }
            })?;
            let name = entry.file_name().to_string_lossy();
            if name.starts_with('.') {
                self.skipped.hidden += 1;
                if entry.file_type().is_dir() {
                    walk.skip_current_dir();
                }
                continue;
            }
            if entry.file_type().is_dir() {
                continue;
            }
            let known = kind_of(&name).filter(|_| entry.file_type().is_file());
            let Some((kind, packing, stem)) = known else {
                self.skipped.unknown += 1;
                continue;
            };
            let below = entry.path().strip_prefix(root).unwrap_or(entry.path());
            let parts: Vec<_> = below.iter().map(|part| part.to_string_lossy()).collect();
            let domain = match (kind, parts.as_slice()) {
                (Kind::Jsonl, _) => stem.to_owned(),
                (Kind::Text, [first, _, ..]) => first.to_string(),
                (Kind::Text, _) => own_name.clone(),
            };
            let meta = entry.metadata().map_err(|e| Error::read(entry.path(), e.into()))?;
            self.add(entry.path(), kind, packing, domain, parts.join("/"), &meta)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        path: &Path,
        kind: Kind,
        packing: Packing,
        domain: String,
        name: String,
        meta: &std::fs::Metadata,
    ) -> Result<()> {
        let whole = path.canonicalize().map_err(|e| Error::read(path, e))?;
        if !self.seen.insert(whole) {
            self.skipped.repeated += 1;
            return Ok(());
        }
        let since = meta.modified().ok().and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
        let modified = since.map_or(0, |since| since.as_nanos());
        let path = path.to_path_buf();
        self.files.push(FoundFile { path, kind, packing, domain, name, bytes: meta.len(), modified });
        Ok(())
    }
}

/// The last component, also of `.` and `..`.
fn base_name(path: &Path) -> String {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
    let of_whole = || path.canonicalize().ok()?.file_name().map(|name| name.to_string_lossy().into_owned());
    name.or_else(of_whole).unwrap_or_else(|| "text".to_owned())
}
