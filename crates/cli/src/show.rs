//! What a user sees: results on standard output, progress and errors on standard error.

use std::{
    io::{self, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use tritrain_data::Stage;
use tritrain_train::{Evaluation, StepReport, TaskReport};

use crate::error::{Error, Result};

/// One line of a result. A reader that went away is no error: training goes on without it.
pub(crate) fn line(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    let written =
        out.write_all(text.as_bytes()).and_then(|()| out.write_all(b"\n")).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Error::Output(error)),
        _ => Ok(()),
    }
}

/// A piece of generated text, shown at once. Whether someone still reads.
pub(crate) fn piece(text: &str) -> bool {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// One JSON object, the last line of a result.
pub(crate) fn json(value: &impl serde::Serialize) -> Result<()> {
    let text = serde_json::to_string(value).map_err(|error| Error::Output(error.into()))?;
    line(&text)
}

/// What a model makes of tasks.
pub(crate) fn tasks(report: &TaskReport) -> Result<()> {
    if let Some(of) = &report.choices {
        let (acc, norm) = (percent(of.acc, of.acc_stderr), percent(of.acc_norm, of.acc_norm_stderr));
        line(&format!("{} questions: acc {acc}, acc_norm {norm}", of.questions))?;
    }
    if let Some(of) = &report.texts {
        line(&format!(
            "{} texts, {} tokens: {:.4} nats per token, {:.4} bits per byte, byte perplexity {:.4}, word perplexity {:.3}",
            of.texts,
            thousands(of.tokens as u64),
            of.loss,
            of.bits_per_byte,
            of.byte_perplexity,
            of.word_perplexity
        ))?;
    }
    Ok(())
}

fn percent(share: f64, error: f64) -> String {
    format!("{:.2} % ± {:.2}", 100.0 * share, 100.0 * error)
}

/// An error and what caused it.
pub(crate) fn error(error: &Error) {
    let mut text = error.to_string();
    if text.contains('\n') {
        text = text.replace('\n', "\n  ");
    }
    let _ = writeln!(io::stderr(), "error: {text}");
}

/// Progress of a long command on standard error: a bar on a terminal, now and then a line elsewhere.
pub(crate) struct Progress {
    bar: ProgressBar,
    terminal: bool,
    /// Smoothed loss and tokens per second.
    loss: f64,
    speed: f64,
    shown: Option<std::time::Instant>,
}

const BAR: &str = "{prefix:>9} [{bar:30}] {pos}/{len} · {msg} · {eta} left";
/// Seconds between two lines where there is no terminal.
const EVERY: Duration = Duration::from_secs(10);

impl Progress {
    pub(crate) fn new(prefix: &str, len: u64, at: u64) -> Progress {
        let terminal = io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(len) } else { ProgressBar::hidden() };
        bar.set_length(len);
        let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
        bar.set_style(style.progress_chars("=> "));
        bar.set_prefix(prefix.to_owned());
        bar.set_position(at);
        bar.reset_eta();
        Progress { bar, terminal, loss: f64::NAN, speed: 0.0, shown: None }
    }

    /// A training step.
    pub(crate) fn step(&mut self, report: &StepReport, tokens: usize, seconds: f64) {
        let smooth =
            |old: f64, new: f64| if old.is_finite() && old > 0.0 { 0.95 * old + 0.05 * new } else { new };
        self.loss = smooth(self.loss, f64::from(report.loss));
        self.speed = smooth(self.speed, tokens as f64 / seconds);
        self.bar.set_position(report.step);
        let message = format!("loss {:.3} · {} tok/s", self.loss, thousands(self.speed as u64));
        self.bar.set_message(message.clone());
        if !self.terminal && self.shown.is_none_or(|at| at.elapsed() >= EVERY) {
            self.shown = Some(std::time::Instant::now());
            let len = self.bar.length().unwrap_or(0);
            let left = (len - report.step.min(len)) as f64 * tokens as f64 / self.speed.max(1.0);
            let left = HumanDuration(Duration::from_secs_f64(left));
            note(&format!("step {}/{len} · {message} · {left} left", report.step));
        }
    }

    /// Bytes behind.
    pub(crate) fn bytes(&self, done: u64) {
        self.bar.set_position(done);
        self.bar.set_message(format!("{} MiB", done >> 20));
    }

    /// A line above the bar.
    pub(crate) fn note(&self, text: &str) {
        self.bar.suspend(|| note(text));
    }

    pub(crate) fn clear(&self) {
        self.bar.finish_and_clear();
    }
}

/// One line on standard error. That nobody reads it is no reason to stop.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// What the preparation of a corpus is doing.
pub(crate) fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Scan => "reading",
        Stage::Tokenizer => "tokenizer",
        Stage::Encode => "encoding",
    }
}

/// `1234567` as `1,234,567`.
pub(crate) fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A number of parameters or tokens as `3.1 M`.
pub(crate) fn short(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} B", n as f64 / 1e9),
    }
}

/// An evaluation in one line.
pub(crate) fn evaluation(of: &Evaluation) -> String {
    let token = if of.answers { "token of answers" } else { "token" };
    format!(
        "{:.4} nats per {token} · {:.4} bits per byte · perplexity {:.2}",
        of.loss, of.bits_per_byte, of.perplexity
    )
}

/// Losses by domain as a table; nothing when there is only one.
pub(crate) fn domains(of: &Evaluation) -> Vec<String> {
    if of.domains.len() < 2 {
        return Vec::new();
    }
    let width = of.domains.iter().map(|domain| domain.domain.len()).max().unwrap_or(0).max(6);
    let mut lines =
        vec![format!("  {:width$}  {:>9}  {:>9}  {:>9}", "domain", "nats/tok", "bits/byte", "tokens")];
    for domain in &of.domains {
        lines.push(format!(
            "  {:width$}  {:>9.4}  {:>9.4}  {:>9}",
            domain.domain,
            domain.loss,
            domain.bits_per_byte,
            thousands(domain.tokens)
        ));
    }
    lines
}

/// A sample with a bar in front of every line.
pub(crate) fn sample(text: &str) -> Vec<String> {
    text.trim_end().lines().map(|line| format!("  | {line}")).collect()
}

/// How this program was called, for commands to copy.
pub(crate) fn program() -> String {
    let name = std::env::args().next().unwrap_or_else(|| "tritrain".into());
    let here = std::env::current_dir().unwrap_or_default();
    Path::new(&name).strip_prefix(&here).map_or(name.clone(), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([7, 1_500, 3_145_728].map(short), ["7", "1.5 k", "3.1 M"]);
    }
}
