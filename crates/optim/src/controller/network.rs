//! The auxiliary network: 6 inputs, 16 hidden units, 2 outputs.

use serde::{Deserialize, Serialize};

/// Inputs of the network.
pub const INPUTS: usize = 6;
/// Outputs: of the learning rate, and of the radius.
pub const OUTPUTS: usize = 2;
const HIDDEN: usize = 16;
/// Numbers of the network: both layers, each with its biases.
pub const WEIGHTS: usize = INPUTS * HIDDEN + HIDDEN + HIDDEN * OUTPUTS + OUTPUTS;

/// The weights inside the program, as [`Network::parse`] takes them.
const SHIPPED: &str = include_str!("weights.json");

/// `tanh(V·max(W·x + b, 0) + c)`. Weights lie in the order W `[16][6]`, b `[16]`, V `[2][16]`, c `[2]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f32>", into = "Vec<f32>")]
pub struct Network {
    weights: Vec<f32>,
}

/// Why numbers are no network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not the file that `meta-train` writes.
    #[error("no JSON with an array \"weights\": {0}")]
    Syntax(String),
    /// Another number of weights.
    #[error("{0} weights, expected {WEIGHTS} (6 to 16 to 2)")]
    Count(usize),
    /// A weight that is not finite.
    #[error("weight {0} is not finite")]
    NotFinite(usize),
}

#[derive(Deserialize)]
struct File {
    weights: Vec<f32>,
}

impl Network {
    /// The network inside the program.
    ///
    /// # Errors
    /// None but in a program built with damaged weights, which a test excludes.
    pub fn shipped() -> Result<Network, NetworkError> {
        Network::parse(SHIPPED)
    }

    /// Reads JSON with an array `weights`; whatever else it holds says where they came from.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn parse(text: &str) -> Result<Network, NetworkError> {
        let file: File =
            serde_json::from_str(text).map_err(|error| NetworkError::Syntax(error.to_string()))?;
        Network::try_from(file.weights)
    }

    /// The weights in their order.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Outputs in [-1, 1]. Computed in f64, term after term: the same bits on every machine.
    pub fn outputs(&self, inputs: &[f64; INPUTS]) -> [f64; OUTPUTS] {
        let (first, rest) = self.weights.split_at(INPUTS * HIDDEN);
        let (first_biases, rest) = rest.split_at(HIDDEN);
        let (second, second_biases) = rest.split_at(HIDDEN * OUTPUTS);
        let mut hidden = [0.0; HIDDEN];
        layer(first, first_biases, inputs, &mut hidden);
        hidden.iter_mut().for_each(|x| *x = x.max(0.0));
        let mut outputs = [0.0; OUTPUTS];
        layer(second, second_biases, &hidden, &mut outputs);
        outputs.map(libm::tanh)
    }
}

/// `W·x + b`, rows of `weights` as long as `inputs`.
fn layer(weights: &[f32], biases: &[f32], inputs: &[f64], outputs: &mut [f64]) {
    let rows = weights.chunks_exact(inputs.len()).zip(biases);
    for ((row, bias), output) in rows.zip(outputs) {
        *output =
            row.iter().zip(inputs).fold(f64::from(*bias), |sum, (weight, x)| sum + f64::from(*weight) * x);
    }
}

impl TryFrom<Vec<f32>> for Network {
    type Error = NetworkError;

    fn try_from(weights: Vec<f32>) -> Result<Network, NetworkError> {
        if weights.len() != WEIGHTS {
            return Err(NetworkError::Count(weights.len()));
        }
        match weights.iter().position(|weight| !weight.is_finite()) {
            Some(at) => Err(NetworkError::NotFinite(at)),
            None => Ok(Network { weights }),
        }
    }
}

impl From<Network> for Vec<f32> {
    fn from(network: Network) -> Vec<f32> {
        network.weights
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_146_weights_of_6_16_2() {
        assert_eq!(WEIGHTS, 146);
        assert_eq!(Network::shipped().unwrap().weights().len(), WEIGHTS);
    }

    /// Beside a computation by hand: one hidden unit per case.
    #[test]
    fn outputs_of_known_weights() {
        let mut weights = vec![0.0; WEIGHTS];
        (weights[2], weights[6 + 4], weights[96]) = (2.0, -1.0, 0.5);
        (weights[112], weights[112 + 16 + 1], weights[145]) = (0.25, 3.0, -0.125);
        let network = Network::try_from(weights).unwrap();
        let [rate, radius] = network.outputs(&[9.0, 9.0, 1.0, 9.0, -1.5, 9.0]);
        assert!((rate - (0.25f64 * (2.0 + 0.5)).tanh()).abs() < 1e-15);
        assert!((radius - (3.0f64 * 1.5 - 0.125).tanh()).abs() < 1e-15);
        // Both units silent: the biases alone.
        let [rate, radius] = network.outputs(&[0.0, 0.0, -1.0, 0.0, 1.0, 0.0]);
        assert!(rate == 0.0 && (radius - (-0.125f64).tanh()).abs() < 1e-15);
    }

    #[test]
    fn what_is_no_network_says_why() {
        let text = |weights: &str| format!("{{\"weights\": [{weights}], \"provenance\": {{}}}}");
        assert_eq!(Network::parse(&text("1, 2")), Err(NetworkError::Count(2)));
        assert!(matches!(Network::parse("[1]"), Err(NetworkError::Syntax(_))));
        let mut weights = vec![0.0; WEIGHTS];
        weights[7] = f32::INFINITY;
        assert_eq!(Network::try_from(weights), Err(NetworkError::NotFinite(7)));
    }
}
