//! What a decoder block needs besides attention: linear, norm, activation, embedding, rotary positions, sampling.
//!
//! All activations are F32 tensors, row-major. Every kernel has `new`, which compiles ([`Linear`] compiles later); `encode`,
//! which records into a pass of the caller's; and `run`, which records into the [`Gpu`](super::Gpu)'s own. Neither waits.

mod activation;
mod embedding;
mod experts;
mod linear;
mod norm;
mod rope;
mod rope_wide;
mod sample;

#[doc(inline)]
pub use crate::gpu::Span;
pub use activation::SwiGlu;
pub use embedding::Embedding;
pub use experts::{ExpertArgs, ExpertScratch, ExpertShape, ExpertTuning, Experts, GateClamp, Route, RouteShape};
pub(crate) use linear::{largest_magnitude, WeightWriter};
pub use linear::{
    measure_dispatch_flop, quantise, AppendRows, BlockType, Linear, LinearArgs, LinearTuning, MatrixTile, Weight,
    WeightType,
};
#[cfg(feature = "model")]
pub(crate) use linear::{PackedRows, RowPacker};
pub use norm::{NormShape, RmsNorm};
pub use rope::{RopeKernel, RopeShape};
pub use rope_wide::{RopeWideArgs, RopeWideKernel};
pub use sample::{ListedToken, Logprobs, Penalties, Sample, Sampling, ShapedRow, ShapedSample};

use crate::error::Result;
use crate::gpu::{DType, KernelSpec};
use crate::rope::RopePairs;
use experts::form::ExpertForm;

/// A kernel's uniform block: a host struct, and its fields' names and offsets for the test that compares it with WGSL.
macro_rules! params {
    ($name:ident { $($field:ident: $ty:ty),* $(,)? }) => {
        #[repr(C)]
        #[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct $name {
            $($field: $ty),*
        }
        impl $name {
            #[cfg(test)]
            pub(super) const FIELDS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field))),*];
        }
    };
}
use params;

/// A size for a parameter block. Whatever exceeds u32 has been refused by [`Span::check`] or is a stride not used.
fn word(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Every kernel text this folder can ask for, and what for.
pub(crate) fn specs() -> Result<Vec<(String, KernelSpec)>> {
    let mut all = linear::specs::specs()?;
    for dtype in [DType::F32, DType::F16] {
        all.push((dtype.to_string(), embedding::spec(dtype)?));
    }
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
        all.push((format!("{dtype} up, 6 experts"), experts::spec(dtype, 6, true, ExpertForm::default())?));
        all.push((format!("{dtype} down, 6 experts"), experts::spec(dtype, 6, false, ExpertForm::default())?));
    }
    for block in BlockType::ALL {
        all.push((block.to_string(), embedding::spec(block)?));
        all.push((format!("{block} up, 6 experts"), experts::spec(block, 6, true, ExpertForm::default())?));
        all.push((format!("{block} down, 6 experts"), experts::spec(block, 6, false, ExpertForm::default())?));
    }
    let biased = ExpertForm { clamp: Some(experts::listed::GPT_OSS), biased: true };
    all.push(("up, biases".into(), experts::spec(BlockType::MXFP4, 4, true, biased)?));
    all.push(("down, biases".into(), experts::spec(BlockType::MXFP4, 4, false, biased)?));
    all.extend(experts::listed::specs()?);
    all.extend(
        experts::route::SHAPES.iter().map(|shape| (format!("{} experts", shape.experts), experts::route::spec(shape))),
    );
    all.extend([("norm".into(), norm::spec()), ("swiglu".into(), activation::spec())]);
    all.extend([RopePairs::Half, RopePairs::Interleaved].map(|r| (format!("{r:?}"), rope::spec(r))));
    all.extend([RopePairs::Half, RopePairs::Interleaved].map(|r| (format!("{r:?} wide"), rope_wide::spec(r))));
    all.extend([100, 100_000].map(|vocab| (format!("vocabulary of {vocab}"), sample::spec(vocab))));
    all.push(("parts of a vocabulary".into(), sample::parts_spec()));
    for vocab in [100, 100_000, 1_000_000] {
        all.extend(sample::shaped::specs(vocab).map(|spec| (format!("vocabulary of {vocab}"), spec)));
        all.extend(sample::logprobs::specs(vocab).map(|spec| (format!("vocabulary of {vocab}"), spec)));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::{MATRIX_WORKGROUP_BYTES, PORTABLE_WORKGROUP_BYTES};
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    /// What every WebGPU device has: unpack2x16float.
    const CORE: Capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    const MATRIX: Capabilities = Capabilities::COOPERATIVE_MATRIX.union(Capabilities::SHADER_FLOAT16);

    /// Each text with its host parameter block.
    fn variants() -> Vec<(KernelSpec, &'static [(&'static str, usize)])> {
        let fields = |name: &str| match name {
            "embedding" => embedding::PARAM_FIELDS,
            "norm" => norm::PARAM_FIELDS,
            "swiglu" => activation::PARAM_FIELDS,
            "rope" => rope::PARAM_FIELDS,
            "rope_wide" => rope_wide::PARAM_FIELDS,
            "route" => experts::route::PARAM_FIELDS,
            "experts" => experts::PARAM_FIELDS,
            "experts_list" => experts::listed::PARAM_FIELDS[0],
            "experts_tile" => experts::listed::PARAM_FIELDS[1],
            "experts_sum" => experts::listed::PARAM_FIELDS[2],
            "sample" | "sample_parts" | "sampled_shape" | "sampled_buckets" | "sampled_draw" => sample::PARAM_FIELDS,
            "logprob_parts" | "logprobs" => sample::logprobs::PARAM_FIELDS,
            _ => linear::PARAM_FIELDS,
        };
        specs().unwrap().into_iter().map(|(_, spec)| (spec.clone(), fields(spec.name))).collect()
    }

    fn parse(spec: &KernelSpec) -> naga::Module {
        let source = spec.assemble();
        naga::front::wgsl::parse_str(&source.text)
            .unwrap_or_else(|e| panic!("{}: {}\n{}", spec.name, e.emit_to_string(&source.text), source.annotated()))
    }

    #[test]
    fn parameter_blocks_match_the_shaders() {
        for (spec, fields) in variants() {
            let module = parse(&spec);
            let params = module.types.iter().find(|(_, t)| t.name.as_deref() == Some("Params")).unwrap().1;
            let naga::TypeInner::Struct { members, span } = &params.inner else { panic!("{}", spec.name) };
            let got: Vec<_> = members.iter().map(|m| (m.name.as_deref().unwrap(), m.offset as usize)).collect();
            assert_eq!(got, fields, "{}", spec.name);
            assert!(*span as usize <= crate::gpu::kernel::PARAM_BYTES, "{}", spec.name);
        }
    }

    #[test]
    fn declared_workgroup_memory_and_bindings_match_the_shaders() {
        for (spec, _) in variants() {
            let module = parse(&spec);
            let mut layouter = naga::proc::Layouter::default();
            layouter.update(module.to_ctx()).unwrap();
            let of = |space| module.global_variables.iter().filter(move |(_, v)| v.space == space);
            let bytes: usize = of(naga::AddressSpace::WorkGroup).map(|(_, v)| layouter[v.ty].size as usize).sum();
            assert_eq!(bytes, spec.workgroup_bytes, "{}", spec.name);
            let most =
                if spec.tier() == crate::Tier::Matrix { MATRIX_WORKGROUP_BYTES } else { PORTABLE_WORKGROUP_BYTES };
            assert!(bytes <= most, "{}: {bytes} bytes", spec.name);
            let bound = module.global_variables.iter().filter(|(_, v)| v.binding.is_some()).count();
            assert_eq!(bound, spec.bindings.len() + 1, "{}", spec.name);
        }
    }

    #[test]
    fn every_variant_validates_with_its_tier_alone() {
        for (spec, _) in variants() {
            let module = parse(&spec);
            let subgroups = spec.tier() > crate::Tier::Portable;
            let allowed = match spec.tier() {
                crate::Tier::Portable => CORE,
                crate::Tier::Subgroup => CORE | Capabilities::SUBGROUP,
                crate::Tier::Matrix => CORE | Capabilities::SUBGROUP | MATRIX,
            };
            let mut validator = Validator::new(ValidationFlags::all(), allowed);
            if subgroups {
                validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
                validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
            }
            validator.validate(&module).unwrap_or_else(|e| panic!("{}: {e:?}", spec.name));
        }
    }
}
