//! What operations cost on engines: three numbers each, fitted to measurements, and a whole of them to keep.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{EngineKind, Operation, Task};

/// Seconds of an operation on an engine, by what [`Task::terms`] counts: `fixed + by_work·units + by_byte·bytes`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds of every call.
    pub fixed: f64,
    /// Seconds for each unit of work.
    pub by_work: f64,
    /// Seconds for each byte: reading, laying out, transfer to a device and back.
    pub by_byte: f64,
}

/// What a task took on an engine, and on the fastest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    pub(crate) task: Task,
    pub(crate) seconds: f64,
    pub(crate) fastest: f64,
}

impl Cost {
    /// What a task should take, in seconds.
    pub fn predict(&self, task: &Task) -> f64 {
        let [calls, units, bytes] = task.terms();
        self.fixed * calls + self.by_work * units + self.by_byte * bytes
    }

    /// The cost, none of its three numbers below zero, with the least sum of squares of relative errors, each times
    /// the fastest engine's share of the time: what counts is where a choice is close.
    ///
    /// The least over all numbers from zero on is the least over some of them with the others at zero: all seven
    /// choices are solved.
    pub(crate) fn fit(measured: &[Measured]) -> Cost {
        // Three factors of the coefficients, and what their sum should be.
        let rows: Vec<[f64; 4]> = measured
            .iter()
            .filter(|of| of.seconds > 0.0)
            .map(|of| {
                let weight = of.fastest / of.seconds;
                let [calls, units, bytes] = of.task.terms();
                [calls, units, bytes, of.seconds].map(|x| x / of.seconds * weight)
            })
            .collect();
        let mut best = (f64::INFINITY, [0.0; 3]);
        for chosen in 1..8u8 {
            let Some(found) = least_squares(&rows, chosen) else { continue };
            let error =
                |row: &[f64; 4]| (row.iter().zip(found).map(|(x, c)| x * c).sum::<f64>() - row[3]).powi(2);
            let error: f64 = rows.iter().map(error).sum();
            // Numbers without use stay zero.
            if found.iter().all(|c| *c >= 0.0) && error < best.0 * 0.999 {
                best = (error, found);
            }
        }
        let [fixed, by_work, by_byte] = best.1;
        Cost { fixed, by_work, by_byte }
    }

    fn is_sound(&self) -> bool {
        [self.fixed, self.by_work, self.by_byte].iter().all(|c| c.is_finite() && *c >= 0.0)
    }
}

/// The coefficients, zero where they are not chosen, whose products with the rows are closest to what stands behind
/// these; none where the rows do not tell them apart.
fn least_squares(rows: &[[f64; 4]], chosen: u8) -> Option<[f64; 3]> {
    let is_chosen = |at: usize| chosen >> at & 1 == 1;
    // Columns of length 1, so that one threshold tells what is singular.
    let length = |at: usize| rows.iter().map(|row| row[at] * row[at]).sum::<f64>().sqrt();
    let lengths = [0, 1, 2].map(length);
    let mut equations = [[0.0; 4]; 3];
    for (i, equation) in equations.iter_mut().enumerate() {
        if !is_chosen(i) {
            equation[i] = 1.0;
            continue;
        }
        if lengths[i] == 0.0 {
            return None;
        }
        for row in rows {
            let x = row[i] / lengths[i];
            for j in (0..3).filter(|j| is_chosen(*j)) {
                equation[j] += x * row[j] / lengths[j];
            }
            equation[3] += x * row[3];
        }
    }
    for i in 0..3 {
        let pivot = (i..3).max_by(|a, b| equations[*a][i].abs().total_cmp(&equations[*b][i].abs()))?;
        equations.swap(i, pivot);
        if equations[i][i].abs() < 1e-9 {
            return None;
        }
        for other in (0..3).filter(|other| *other != i) {
            let times = equations[other][i] / equations[i][i];
            for j in i..4 {
                equations[other][j] -= times * equations[i][j];
            }
        }
    }
    let solved =
        [0, 1, 2].map(|i| if is_chosen(i) { equations[i][3] / equations[i][i] / lengths[i] } else { 0.0 });
    Some(solved)
}

/// Costs of every operation on every engine of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// [`Calibration::VERSION`] of the program that measured.
    pub version: u32,
    /// Processor, program and engines that were measured.
    pub machine: String,
    /// The costs.
    pub costs: BTreeMap<Operation, BTreeMap<EngineKind, Cost>>,
}

impl Calibration {
    /// What costs mean: it grows when [`Task::terms`] changes.
    pub const VERSION: u32 = 1;

    /// The cost of an operation on an engine.
    pub fn cost(&self, operation: Operation, engine: EngineKind) -> Option<Cost> {
        self.costs.get(&operation)?.get(&engine).copied()
    }

    /// Why it says nothing about a machine with these engines; none where it does.
    pub(crate) fn foreign(&self, machine: &str, engines: &[EngineKind]) -> Option<String> {
        if self.version != Calibration::VERSION {
            return Some(format!("it has version {}, expected {}", self.version, Calibration::VERSION));
        }
        if self.machine != machine {
            return Some(format!("it was measured on {:?}, this is {machine:?}", self.machine));
        }
        for operation in Operation::ALL {
            for engine in engines {
                if !self.cost(operation, *engine).is_some_and(|cost| cost.is_sound()) {
                    return Some(format!("it has no cost of {} on {}", operation.name(), engine.name()));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(of: impl Fn(&Task) -> f64) -> Vec<Measured> {
        let sizes = [(1, 16, 16), (8, 64, 64), (64, 64, 256), (128, 256, 256), (32, 512, 128)];
        let task = |(rows, outputs, inputs)| Task::Matmul { rows, outputs, inputs };
        let one = |task: &Task| Measured { task: *task, seconds: of(task), fastest: of(task) };
        sizes.map(task).iter().map(one).collect()
    }

    #[test]
    fn a_fit_finds_the_cost_that_made_the_times() {
        for expected in [[2e-6, 1e-10, 3e-9], [0.0, 1e-10, 0.0], [5e-6, 0.0, 1e-9], [1e-7, 2e-9, 0.0]] {
            let [fixed, by_work, by_byte] = expected;
            let cost = Cost { fixed, by_work, by_byte };
            let found = Cost::fit(&measured(|task| cost.predict(task)));
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.max(1e-12);
            assert!(near(found.fixed, fixed) && near(found.by_work, by_work), "{found:?} for {cost:?}");
            assert!(near(found.by_byte, by_byte), "{found:?} for {cost:?}");
        }
    }

    #[test]
    fn a_fit_is_best_where_the_engine_is_fast() {
        // A fixed cost that small tasks do not have, on an engine that is far behind there.
        let mut measured = measured(|task| 1e-5 + 1e-10 * task.work());
        measured[0].seconds = 1e-6;
        measured[0].fastest = 1e-9;
        let found = Cost::fit(&measured);
        for of in &measured[1..] {
            let error = found.predict(&of.task) / of.seconds - 1.0;
            assert!(error.abs() < 0.01, "{error}");
        }
    }

    #[test]
    fn no_cost_is_negative_and_one_measurement_is_enough() {
        // Less than in proportion: a line through these would begin below zero.
        let found = Cost::fit(&measured(|task| 1e-9 * task.work().powf(1.3)));
        assert!(found.is_sound(), "{found:?}");
        let one = Cost::fit(&measured(|_| 1e-3)[..1]);
        assert!(one.is_sound() && (one.predict(&measured(|_| 1.0)[0].task) - 1e-3).abs() < 1e-9, "{one:?}");
        assert_eq!(Cost::fit(&[]), Cost { fixed: 0.0, by_work: 0.0, by_byte: 0.0 });
    }

    #[test]
    fn a_calibration_of_another_machine_or_a_broken_one_is_foreign() {
        let cost = Cost { fixed: 1e-6, by_work: 1e-9, by_byte: 0.0 };
        let engines = [EngineKind::Scalar, EngineKind::Simd];
        let all = || Operation::ALL.map(|op| (op, engines.map(|engine| (engine, cost)).into())).into();
        let good = Calibration { version: Calibration::VERSION, machine: "this".into(), costs: all() };
        assert_eq!(good.foreign("this", &engines), None);
        assert!(good.foreign("that", &engines).unwrap().contains("that"));
        assert!(good.foreign("this", &EngineKind::ALL).unwrap().contains("parallel"));
        assert!(Calibration { version: 0, ..good.clone() }.foreign("this", &engines).is_some());
        let mut negative = good.clone();
        negative.costs.get_mut(&Operation::Matmul).unwrap().get_mut(&EngineKind::Simd).unwrap().fixed = -1.0;
        assert!(negative.foreign("this", &engines).unwrap().contains("matmul on simd"));
        let text = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<Calibration>(&text).unwrap(), good);
    }
}
