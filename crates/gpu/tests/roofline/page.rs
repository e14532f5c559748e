//! The page: launches of a step, and what limits them on devices known by their data sheets.

use std::{collections::BTreeMap, fmt::Write};

use tritrain_gpu::{Arithmetic, Launch};

use crate::Step;

/// A graphics processor by its numbers.
struct Device {
    name: &'static str,
    /// Bytes from memory in a second.
    memory: f64,
    /// Operations on f32 in a second.
    f32: f64,
    /// Operations on int8 in a second, in dot products of four outside of matrix units.
    int8: f64,
    /// Where the first two come from.
    source: &'static str,
    /// Where the third comes from.
    integers: &'static str,
}

const TERA: f64 = 1e12;

const DEVICES: [Device; 4] = [
    Device {
        name: "H100 SXM",
        memory: 3.35 * TERA,
        f32: 67.0 * TERA,
        int8: 132.0 * 64.0 * 8.0 * 1.98e9,
        source: "NVIDIA H100 data sheet",
        integers: "132 multiprocessors, 64 results of 32-bit integer multiply-adds a clock each (CUDA C++ Programming Guide, throughput of arithmetic instructions), 1.98 GHz; that `dp4a` has that rate is assumed",
    },
    Device {
        name: "RTX 4090",
        memory: 1.008 * TERA,
        f32: 82.6 * TERA,
        int8: 128.0 * 64.0 * 8.0 * 2.52e9,
        source: "NVIDIA Ada GPU architecture white paper",
        integers: "128 multiprocessors, 64 a clock as above, 2.52 GHz; assumed likewise",
    },
    Device {
        name: "MI300X",
        memory: 5.3 * TERA,
        f32: 163.4 * TERA,
        int8: 304.0 * 64.0 * 8.0 * 2.1e9,
        source: "AMD Instinct MI300X data sheet",
        integers: "304 compute units of 64 lanes, 2.1 GHz (the same data sheet); one `v_dot4_i32_i8` a lane and clock is assumed",
    },
    Device {
        name: "M3 Max",
        memory: 0.4 * TERA,
        f32: 40.0 * 128.0 * 2.0 * 1.38e9,
        int8: 40.0 * 128.0 / 20.0 * 8.0 * 1.38e9,
        source: "memory: Apple's technical specifications (40 cores); Apple gives no rate of f32: 128 lanes a core and 1.38 GHz are assumed",
        integers: "no dot product of int8 in WGSL or Metal: twenty instructions for each are assumed",
    },
];

impl Device {
    /// Seconds by bytes, by int8 and by f32.
    fn seconds(&self, traffic: f64, work: Arithmetic) -> [f64; 3] {
        [traffic / self.memory, work.int8 / self.int8, work.f32 / self.f32]
    }
}

/// Names of what limits.
const LIMITS: [&str; 3] = ["memory", "int8", "f32"];

/// What a launch costs a driver, in seconds: nobody's data sheet says.
const LAUNCH: f64 = 5e-6;

/// All launches of a kernel.
#[derive(Clone, Default)]
struct Row {
    count: usize,
    traffic: f64,
    work: Arithmetic,
    /// By device: seconds, and those by what limits.
    seconds: [(f64, [f64; 3]); 4],
}

impl Row {
    fn add(&mut self, launch: &Launch) {
        let (traffic, work) = (launch.traffic() as f64, launch.arithmetic());
        self.count += 1;
        self.traffic += traffic;
        self.work.int8 += work.int8;
        self.work.f32 += work.f32;
        for (device, (total, by)) in DEVICES.iter().zip(&mut self.seconds) {
            let seconds = device.seconds(traffic, work);
            let (limit, longest) = seconds.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
            *total += longest;
            by[limit] += longest;
        }
    }

    /// What limits a kernel on a device for most of its time.
    fn limit(&self, device: usize) -> &'static str {
        let (at, _) = self.seconds[device].1.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap();
        LIMITS[at]
    }
}

pub(crate) fn render(steps: &[Step]) -> String {
    let mut page = String::from(
        "# What limits a training step on graphics processors\n\n\
         **This is a prediction. Nothing on this page was measured: no graphics processor has run this program.** It says \
         how long a step takes at least, so where work on kernels could pay.\n\n\
         `cargo xtask roofline` writes it: a step of each model is taken on a device that notes what is launched and \
         computes nothing, so launches, bytes and operations are those of the code. A test fails where the page is stale.\n\n\
         - Bytes: every buffer that a kernel is given, once; twice where it is read and written; results of products once \
         more for each further block of the inner index. Whatever else is used again comes from caches.\n\
         - Operations: multiplications and additions of products and attention. Of all other kernels they are a few for \
         each number, which memory hides.\n\
         - Time of a launch: the longest of bytes over bandwidth and operations over peak, as if either were reached. \
         Kernels reach less: products read tiles from shared memory and use no matrix units.\n\n\
         | device | memory, TB/s | f32, TFLOPS | int8 dot products, TOPS | sources |\n|---|---|---|---|---|\n",
    );
    for of in &DEVICES {
        let tera = [of.memory, of.f32, of.int8].map(|x| x / TERA);
        let [memory, f32, int8] = tera;
        writeln!(
            page,
            "| {} | {memory:.2} | {f32:.1} | {int8:.1} | {}; int8: {} |",
            of.name, of.source, of.integers
        )
        .unwrap();
    }
    steps.iter().for_each(|step| table(&mut page, step));
    page
}

fn table(page: &mut String, step: &Step) {
    let launches = step.launches();
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut all = Row::default();
    for launch in &launches {
        rows.entry(launch.label()).or_default().add(launch);
        all.add(launch);
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by(|a, b| b.1.seconds[0].0.total_cmp(&a.1.seconds[0].0).then(a.0.cmp(&b.0)));
    let model = &step.config.model;
    let (tokens, parameters) = (step.tokens(), step.layout().parameters() as f64 / 1e6);
    write!(
        page,
        "\n## {}\n\n{parameters:.1} M parameters: dim {}, {} layers, {} heads, ffn {}, vocabulary {}; {} × {} tokens a step.\n\
         Microseconds, and what limits for most of them.\n\n| kernel | launches | MB | int8, G | f32, G |",
        step.name, model.dim, model.layers, model.heads, model.ffn, step.vocab, step.batch, model.context
    )
    .unwrap();
    DEVICES.iter().for_each(|of| write!(page, " {} |", of.name).unwrap());
    page.push_str("\n|---|---|---|---|---|---|---|---|---|\n");
    for (name, row) in &rows {
        line(page, name, row);
    }
    line(page, "all", &all);
    page.push('\n');
    let rates: Vec<String> = DEVICES
        .iter()
        .zip(&all.seconds)
        .map(|(of, (seconds, _))| format!("{} {:.0}", of.name, tokens as f64 / seconds / 1e3))
        .collect();
    writeln!(
        page,
        "At most so many thousand tokens a second: {}. {} launches take {:.1} ms where the driver needs {:.0} µs for each \
         (assumed), which is {}; the host waits once besides.",
        rates.join(", "),
        all.count,
        all.count as f64 * LAUNCH * 1e3,
        LAUNCH * 1e6,
        match all.count as f64 * LAUNCH > all.seconds[0].0 {
            true => format!("more than all kernels on the {}: launches limit this model there", DEVICES[0].name),
            false => format!("less than all kernels on the {}", DEVICES[0].name),
        },
    )
    .unwrap();
}

fn line(page: &mut String, name: &str, row: &Row) {
    let [traffic, int8, f32] = [row.traffic / 1e6, row.work.int8 / 1e9, row.work.f32 / 1e9];
    write!(page, "| {name} | {} | {traffic:.2} | {int8:.2} | {f32:.2} |", row.count).unwrap();
    for (at, (seconds, _)) in row.seconds.iter().enumerate() {
        write!(page, " {:.1} {} |", seconds * 1e6, row.limit(at)).unwrap();
    }
    page.push('\n');
}
