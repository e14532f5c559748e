//! The f64 reference against central differences, hand-computed numbers and symmetries of the model.

mod case;
mod differences;
mod rounding;
mod structure;
