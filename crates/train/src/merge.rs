//! A ternary model and the adapters beside it as one ternary model.

use std::path::{Path, PathBuf};

use serde::Serialize;
use tritrain_backend::{Backend, Cpu, Memory, Values};
use tritrain_data::Source;
use tritrain_files::{
    Storage,
    tensors::{self, TensorView},
};
use tritrain_model::{Activations, Keep, Model, ModelConfig, TensorKind, Use};
use tritrain_trit::ternary;

use crate::{
    Error, Evaluation, Loaded, Result, Single,
    evaluate::{only, windows_at_once},
    evaluate_text,
    origin::bring_chat,
    save::{MODEL, TOKENIZER, metadata},
};

/// How matrices with what adapters add to them become ternary again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    /// What adapters add goes to the latent weights, which are rounded as in training: codes change where latent
    /// weights were near to another code. For models that have latent weights of their own.
    Latent,
    /// The codes and the scale with the least squared distance to `scale · codes + B·A`.
    Nearest,
}

/// What merging costs.
#[derive(Clone, Debug, Serialize)]
pub struct Merged {
    /// The merged model.
    pub path: PathBuf,
    /// How its codes were found: the way that loses less.
    pub way: Way,
    /// Share of the codes that changed.
    pub changed: f64,
    /// The model without adapters, on the text that was given.
    pub base: Evaluation,
    /// With them.
    pub adapted: Evaluation,
    /// Merged, by each way there is.
    pub merged: Vec<(Way, Evaluation)>,
}

/// Merges the adapters of `loaded` into its base and writes the result into the folder `out`, with its tokenizer. All
/// are evaluated on `source`, up to so many tokens; of the ways to merge, the one with the least loss is kept.
///
/// # Errors
/// `loaded` has no adapters; a model lies in `out`; text or files that cannot be read or written.
pub fn merge(
    backend: &Cpu,
    storage: &dyn Storage,
    loaded: &Loaded,
    (source, max_tokens): (&Source, u64),
    out: &Path,
) -> Result<Merged> {
    let content = |path: &Path, expected: &str, found: &str| Error::Content {
        path: path.to_path_buf(),
        expected: expected.into(),
        found: found.into(),
    };
    let Some(base) = loaded.base() else {
        return Err(content(&loaded.path, "adapters, as model.lora trains them", "a model without any"));
    };
    let path = out.join(MODEL);
    if storage.exists(&path)? {
        return Err(content(
            &path,
            "nothing, where the merged model is to lie",
            "a model; choose another --out",
        ));
    }
    let config = ModelConfig { lora: 0, ..loaded.config.clone() };
    let evaluated = |model: &Model<Cpu>| {
        let (batch, time) = (windows_at_once(config.context), config.context);
        let mut activations = Activations::new(backend, &config, batch, time, Keep::Nothing);
        let mut single = Single::new(backend, model, &mut activations);
        evaluate_text(&mut single, (loaded, None), (storage, source), max_tokens).map(only)
    };
    let model = loaded.model(backend)?;
    let (base_loss, adapted) = (evaluated(&base.model(backend)?)?, evaluated(&model)?);
    let (mut best, mut merged): (Option<(f64, Way, Weights)>, _) = (None, Vec::new());
    for way in [Way::Latent, Way::Nearest] {
        let Some(weights) = weights(backend, loaded, &model, way)? else { continue };
        let values = |id: usize| Values::from(&weights.tensors[id]);
        let evaluation = evaluated(&Model::new(backend, &config, loaded.vocab, &values, Use::Inference))?;
        if best.as_ref().is_none_or(|(least, ..)| evaluation.loss < *least) {
            best = Some((evaluation.loss, way, weights));
        }
        merged.push((way, evaluation));
    }
    let Some((_, way, weights)) = best else {
        unreachable!("every model has the nearest codes");
    };
    storage.create_dir_all(out)?;
    loaded.tokenizer.save(storage, &out.join("tokenizer.json"))?;
    bring_chat(storage, base, out)?;
    let mut entries = metadata(&config, loaded.vocab, 0)?;
    entries.insert(TOKENIZER.to_owned(), loaded.tokenizer.hash().to_owned());
    let views = loaded.layout().specs.iter().zip(&weights.tensors).map(|(spec, weights)| {
        let shape = spec.shape();
        TensorView::f32(spec.name.as_str(), &shape, weights)
    });
    // The model last: where it is, everything is.
    tensors::save(storage, &path, views, &entries)?;
    Ok(Merged { path, way, changed: weights.changed, base: base_loss, adapted, merged })
}

/// Weights of a merged model, in layout order; latent ones of matrices.
struct Weights {
    tensors: Vec<Vec<f32>>,
    changed: f64,
}

/// Merged weights of `loaded`, which is also `model`; none where there are no latent weights to go by.
fn weights(backend: &Cpu, loaded: &Loaded, model: &Model<Cpu>, way: Way) -> Result<Option<Weights>> {
    let layout = loaded.layout();
    let (mut tensors, mut changed, mut all) = (Vec::new(), 0, 0);
    let base = layout.specs.iter().enumerate().filter(|(_, spec)| spec.kind != TensorKind::Adapter);
    for (id, spec) in base {
        let values = loaded.values(id)?;
        let Some([a, b]) = layout.adapters.get(&id) else {
            tensors.push(values.host().into_owned());
            continue;
        };
        let Some((codes, scale)) = model.codes(backend, id) else {
            unreachable!("adapters are beside ternary matrices");
        };
        let mut added = backend.floats(spec.len());
        let [a, b] = [a, b].map(|id| model.weights()[*id].floats());
        backend.matmul_input_gradient(b, a, spec.cols, &mut added);
        let sum = |weights: &[f32]| weights.iter().zip(&added[..]).map(|(w, d)| w + d).collect::<Vec<f32>>();
        let latent = match (way, &values) {
            (Way::Latent, Values::Codes(..)) => return Ok(None),
            (Way::Latent, _) => sum(&values.numbers(backend, spec.rows, spec.cols)),
            (Way::Nearest, _) => {
                let mut weights = vec![0.0; codes.len()];
                ternary::dequantize(&codes, scale, &mut weights);
                let (codes, scale) = nearest(&sum(&weights), scale);
                ternary::latent(&codes, scale)
            }
        };
        let scale = ternary::absmean(&latent).unwrap_or(f32::NAN);
        changed += latent.iter().zip(&codes).filter(|(w, code)| ternary::code(**w, scale) != **code).count();
        all += codes.len();
        tensors.push(latent);
    }
    Ok(Some(Weights { tensors, changed: changed as f64 / all.max(1) as f64 }))
}

/// Iterations of [`nearest`] at most; few change anything.
const ITERATIONS: usize = 20;

/// Codes and fp16 scale with the least squared distance to `weights`, from a scale that is about right: by turns the
/// best codes for the scale, and the best scale for the codes (Lloyd's method on one dimension).
fn nearest(weights: &[f32], mut scale: f32) -> (Vec<i8>, f32) {
    let mut codes = vec![0; weights.len()];
    for _ in 0..ITERATIONS {
        ternary::quantize(weights, scale, &mut codes);
        let pairs = || weights.iter().zip(&codes).filter(|(_, code)| **code != 0);
        let sum: f64 = pairs().map(|(w, _)| f64::from(w.abs())).sum();
        let best = ternary::scale_from_total(sum, pairs().count()).unwrap_or(scale);
        if best == scale {
            break;
        }
        scale = best;
    }
    (codes, scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_codes_are_those_of_a_search() {
        let weights: Vec<f32> = (0..300).map(|i| ((i * i) as f32 * 0.37).sin() * 0.02).collect();
        let distance = |codes: &[i8], scale: f32| {
            let pairs = weights.iter().zip(codes);
            pairs.map(|(w, code)| f64::from(w - f32::from(*code) * scale).powi(2)).sum::<f64>()
        };
        let (codes, scale) = nearest(&weights, 0.01);
        let searched = (1..400).map(|n| {
            let scale = n as f32 * 1e-4;
            let mut codes = vec![0; weights.len()];
            ternary::quantize(&weights, scale, &mut codes);
            distance(&codes, scale)
        });
        let best = searched.fold(f64::INFINITY, f64::min);
        assert!(distance(&codes, scale) <= best * 1.001, "{} of {best}", distance(&codes, scale));
        // What is ternary already stays as it is.
        let exact: Vec<f32> = codes.iter().map(|code| f32::from(*code) * scale).collect();
        assert_eq!(nearest(&exact, scale), (codes, scale));
        assert_eq!(nearest(&[0.0; 5], 0.5).0, [0; 5]);
    }
}
