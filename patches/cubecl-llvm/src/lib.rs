//! In place of cubecl-llvm 0.11.3, whose build downloads LLVM: what CubeCL's runtimes for CUDA and HIP name of it.
//!
//! Both are built with the feature that makes them compile kernels from C++, with NVRTC and HIPRTC, so that nothing here
//! is called but to be told that it is not there. Fields and variants are those of the original.

use cubecl_core::{
    ir::{amd::GfxArch, nvidia::SmArch},
    prelude::KernelDefinition,
};
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::{compiler::CompilationError, kernel::BufferIOAttr};

/// Of NVIDIA.
pub mod nvptx {
    /// Versions of PTX.
    pub mod ptx_version {
        use core::fmt;

        /// A version of PTX.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct PtxVersion(());

        impl PtxVersion {
            /// What a driver loads: nothing that is made here.
            pub fn for_driver(_: i32) -> Option<PtxVersion> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("none")
            }
        }
    }
}

/// Of all targets.
pub mod shared {
    /// What devices are said to have.
    pub mod lowered_features {
        use cubecl_core::ir::{DeviceProperties, amd::AmdWmma};

        /// A target.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA.
            Nvptx,
            /// AMD.
            AmdGpu {
                /// Its matrix instructions.
                wmma: Option<AmdWmma>,
            },
        }

        /// Takes away what LLVM has no way to: of kernels from C++, nothing.
        pub fn restrict_features(_: &mut DeviceProperties, _: GpuTarget) {}
    }
}

/// A target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// The processor.
    #[default]
    Cpu,
    /// AMD.
    AmdGpu,
    /// NVIDIA.
    Nvptx,
}

/// A kernel for AMD.
#[derive(Clone, Debug)]
pub struct AmdGpuModule {
    /// Its code.
    pub code_object: Vec<u8>,
    /// Its name.
    pub entrypoint: String,
    /// Its source.
    pub ir: String,
    /// Bytes of shared memory.
    pub shared_memory_size: usize,
    /// What becomes of its buffers.
    pub io: Vec<BufferIOAttr>,
}

/// A kernel for NVIDIA.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// Its code.
    pub ptx: Vec<core::ffi::c_char>,
    /// Its name.
    pub entrypoint: String,
    /// Its source.
    pub ir: String,
    /// Bytes of shared memory.
    pub shared_memory_size: usize,
    /// What becomes of its buffers.
    pub io: Vec<BufferIOAttr>,
}

/// A kernel.
#[derive(Clone)]
pub enum PlironArtifact {
    /// For AMD.
    AmdGpuCode(AmdGpuModule),
    /// For NVIDIA.
    NvptxCode(NvptxModule),
}

/// How to compile.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Of AMD, the device.
    pub arch: Option<GfxArch>,
    /// Of NVIDIA, the device.
    pub sm_arch: Option<SmArch>,
    /// Of NVIDIA, the version.
    pub ptx_version: Option<nvptx::ptx_version::PtxVersion>,
    /// How numbers are given to kernels.
    pub grid_constants: bool,
}

/// A compiler that compiles nothing.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// Its target.
    pub target: LlvmTarget,
}

impl PlironCompiler {
    /// Says that it does not.
    ///
    /// # Errors
    /// Always.
    pub fn compile(&mut self, _: KernelDefinition, _: &PlironOptions) -> Result<PlironArtifact, CompilationError> {
        let reason = "this program was built without LLVM".into();
        Err(CompilationError::Generic { reason, backtrace: BackTrace::capture() })
    }

    /// The ending of files of its sources.
    pub fn extension(&self) -> &'static str {
        "ll"
    }

    /// The name of their language.
    pub fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
