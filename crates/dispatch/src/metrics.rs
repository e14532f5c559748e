//! What a dispatcher has done.

use serde::Serialize;

use crate::{EngineKind, Operation, Task};

/// One operation on one engine, or all on one.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Usage {
    /// The operation; none where several are counted together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
    /// The engine.
    pub engine: EngineKind,
    /// Calls.
    pub operations: u64,
    /// Seconds in them.
    pub seconds: f64,
    /// [`Task::work`] in them.
    pub work: f64,
}

/// What a dispatcher has done since it was made.
#[derive(Clone, Debug, Serialize)]
pub struct Metrics {
    /// Calls of the dispatcher.
    pub total_operations: u64,
    /// Seconds that engines worked for them.
    pub total_seconds: f64,
    /// The same by operation and engine, those that had any.
    pub usage: Vec<Usage>,
    /// Times that predictions were compared with a measurement of every engine.
    pub audits: u64,
    /// Times that an operation was measured anew because predictions were wrong.
    pub repairs: u64,
    /// Seconds of both, and of the first calibration.
    pub measuring_seconds: f64,
}

impl Metrics {
    /// The sums by engine, those that had any calls.
    pub fn backend_summary(&self) -> Vec<Usage> {
        let of = |engine| {
            let mut sum = Usage { operation: None, engine, operations: 0, seconds: 0.0, work: 0.0 };
            for usage in self.usage.iter().filter(|usage| usage.engine == engine) {
                sum.operations += usage.operations;
                sum.seconds += usage.seconds;
                sum.work += usage.work;
            }
            sum
        };
        EngineKind::ALL.map(of).into_iter().filter(|sum| sum.operations > 0).collect()
    }
}

/// What is counted while calls run, without memory to take.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    calls: u64,
    table: [[(u64, f64, f64); 4]; 5],
    pub(crate) audits: u64,
    pub(crate) repairs: u64,
    pub(crate) measuring_seconds: f64,
}

impl Counts {
    pub(crate) fn called(&mut self) {
        self.calls += 1;
    }

    pub(crate) fn ran(&mut self, task: &Task, engine: EngineKind, seconds: f64) {
        let counted = &mut self.table[task.operation() as usize][engine.index()];
        *counted = (counted.0 + 1, counted.1 + seconds, counted.2 + task.work());
    }

    pub(crate) fn metrics(&self) -> Metrics {
        let mut usage = Vec::new();
        for operation in Operation::ALL {
            for engine in EngineKind::ALL {
                let (operations, seconds, work) = self.table[operation as usize][engine.index()];
                if operations > 0 {
                    usage.push(Usage { operation: Some(operation), engine, operations, seconds, work });
                }
            }
        }
        Metrics {
            total_operations: self.calls,
            total_seconds: usage.iter().map(|usage| usage.seconds).sum(),
            usage,
            audits: self.audits,
            repairs: self.repairs,
            measuring_seconds: self.measuring_seconds,
        }
    }
}
