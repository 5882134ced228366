//! Which tensors are read again whenever they are needed, instead of kept in memory: T5's blocks for each prompt, some of the
//! transformer's blocks for each step, and the layers of its modulations.

/// T5's blocks.
const T5_BLOCKS: &str = "encoder.block.";

/// Which of the transformer's blocks are read for each step. Where some are, so are the layers of all modulations, which
/// several steps share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamedBlocks {
    /// How many stay in memory.
    pub(crate) resident: usize,
    /// Blocks with two streams, which come first.
    pub(crate) double: usize,
    /// All of them.
    pub(crate) total: usize,
}

impl StreamedBlocks {
    /// Whether a block is read for each step, by its number.
    pub(crate) fn has(self, number: usize) -> bool {
        // Those that stay are spread evenly: the next one is read while they compute.
        let total = self.total.max(1);
        (number + 1) * self.resident / total == number * self.resident / total
    }
}

/// When a tensor is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reading {
    Once,
    ForPrompts,
    ForSteps,
    ForModulations,
}

/// What is read repeatedly, of one component.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Repeated {
    /// Whether it is T5, and its blocks are.
    pub(super) is_text: bool,
    /// Of the transformer.
    pub(super) blocks: Option<StreamedBlocks>,
}

impl Repeated {
    /// When the tensor of a name is read.
    pub(super) fn reading(self, name: &str) -> Reading {
        if self.is_text && name.starts_with(T5_BLOCKS) {
            return Reading::ForPrompts;
        }
        let Some(blocks) = self.blocks else { return Reading::Once };
        match Place::of(name, blocks.double) {
            Place::Block(number) if blocks.has(number) => Reading::ForSteps,
            Place::Modulation => Reading::ForModulations,
            Place::Block(_) | Place::Elsewhere => Reading::Once,
        }
    }
}

/// Where a tensor of the transformer is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In a block, but not its modulation.
    Block(usize),
    Modulation,
    Elsewhere,
}

impl Place {
    /// By its name; blocks with one stream are counted from `double` on.
    fn of(name: &str, double: usize) -> Self {
        let is_modulation = name.contains("_mod.lin.") || name.contains(".modulation.lin.");
        if is_modulation || name.starts_with("final_layer.adaLN_modulation.") {
            return Self::Modulation;
        }
        let number = |rest: &str| rest.split('.').next().and_then(|number| number.parse::<usize>().ok());
        if let Some(number) = name.strip_prefix("double_blocks.").and_then(number) {
            return Self::Block(number);
        }
        match name.strip_prefix("single_blocks.").and_then(number) {
            Some(number) => Self::Block(double + number),
            None => Self::Elsewhere,
        }
    }
}

/// Bytes of the transformer's parts that need not stay in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BlockBytes {
    /// Of each block without its modulations, those with two streams first.
    pub(crate) blocks: Vec<usize>,
    /// How many have two streams.
    pub(crate) double: usize,
    /// Of the layers of all modulations.
    pub(crate) modulations: usize,
    /// Of the largest of them.
    pub(crate) modulation_max: usize,
}

impl BlockBytes {
    /// From the names and bytes of the transformer's tensors. Of `blocks` blocks, `double` have two streams.
    pub(crate) fn of<'a>(tensors: impl IntoIterator<Item = (&'a str, usize)>, double: usize, blocks: usize) -> Self {
        let mut bytes = Self { blocks: vec![0; blocks], double, modulations: 0, modulation_max: 0 };
        for (name, size) in tensors {
            match Place::of(name, double) {
                Place::Block(number) => {
                    if let Some(block) = bytes.blocks.get_mut(number) {
                        *block += size;
                    }
                }
                Place::Modulation => {
                    bytes.modulations += size;
                    bytes.modulation_max = bytes.modulation_max.max(size);
                }
                Place::Elsewhere => {}
            }
        }
        bytes
    }

    /// With so many blocks in memory.
    pub(crate) fn streamed(&self, resident: usize) -> StreamedBlocks {
        StreamedBlocks { resident, double: self.double, total: self.blocks.len() }
    }

    /// Bytes of the blocks that are read for each step.
    pub(crate) fn read_for_a_step(&self, streamed: StreamedBlocks) -> usize {
        (0..).zip(&self.blocks).filter(|(number, _)| streamed.has(*number)).map(|(_, bytes)| bytes).sum()
    }

    /// Bytes of what is in memory at a time of all that is read: a block that computes, and the next one; or two layers of
    /// modulations.
    pub(crate) fn read_at_a_time(&self, streamed: StreamedBlocks) -> usize {
        let of_blocks = (0..).zip(&self.blocks).filter(|(number, _)| streamed.has(*number)).map(|(_, bytes)| *bytes);
        2 * of_blocks.max().unwrap_or_default().max(self.modulation_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::checkpoint::flux_dev_tensors;

    /// FLUX.1-dev in bf16, whose sizes follow from the configuration.
    #[test]
    fn modulations_are_more_than_a_quarter_of_the_transformer() {
        const HIDDEN: usize = 3072;
        let tensors = flux_dev_tensors();
        let sizes = tensors.iter().map(|(name, shape)| (name.as_str(), 2 * shape.iter().product::<usize>()));
        let bytes = BlockBytes::of(sizes, 19, 57);
        // 12 parts in a block with two streams, 3 in one with one, 2 in the final layer, each with a bias.
        let parts = 12 * 19 + 3 * 38 + 2;
        assert_eq!(bytes.modulations, 2 * parts * HIDDEN * (HIDDEN + 1));
        assert_eq!(bytes.modulation_max, 2 * 6 * HIDDEN * HIDDEN);
        // Two streams of 12 hidden² each, with biases of 9 hidden and two scales of a head; and one of 12 hidden².
        assert_eq!(bytes.blocks[0], 2 * 2 * (12 * HIDDEN * HIDDEN + 9 * HIDDEN + 2 * 128));
        assert_eq!(bytes.blocks[56], 2 * (12 * HIDDEN * HIDDEN + 8 * HIDDEN + 2 * 128));
        let all = bytes.blocks.iter().sum::<usize>() + bytes.modulations;
        // What is left are the embedders and the last layer.
        assert_eq!(2 * 11_901_408_320 - all, 2 * (45_047_808 + 64 * HIDDEN + 64));
    }

    #[test]
    fn blocks_that_stay_are_spread_evenly() {
        let streamed = |resident, total| StreamedBlocks { resident, double: 0, total };
        let resident = |resident, total| -> Vec<usize> {
            (0..total).filter(|number| !streamed(resident, total).has(*number)).collect()
        };
        assert_eq!(resident(0, 8), [0; 0]);
        assert_eq!(resident(2, 8), [3, 7]);
        assert_eq!(resident(8, 8), [0, 1, 2, 3, 4, 5, 6, 7]);
        for count in 0..=57 {
            assert_eq!(resident(count, 57).len(), count);
        }
    }

    #[test]
    fn a_tensor_is_read_when_it_is_needed() {
        let blocks = Some(StreamedBlocks { resident: 0, double: 2, total: 4 });
        let transformer = Repeated { blocks, ..Repeated::default() };
        for (name, reading) in [
            ("double_blocks.1.img_attn.qkv.weight", Reading::ForSteps),
            ("single_blocks.1.norm.key_norm.scale", Reading::ForSteps),
            ("double_blocks.0.txt_mod.lin.bias", Reading::ForModulations),
            ("single_blocks.0.modulation.lin.weight", Reading::ForModulations),
            ("final_layer.adaLN_modulation.1.weight", Reading::ForModulations),
            ("final_layer.linear.weight", Reading::Once),
            ("img_in.weight", Reading::Once),
        ] {
            assert_eq!(transformer.reading(name), reading, "{name}");
            assert_eq!(Repeated::default().reading(name), Reading::Once, "{name}");
        }
        let half = Some(StreamedBlocks { resident: 2, double: 2, total: 4 });
        let some = Repeated { blocks: half, ..Repeated::default() };
        assert_eq!(some.reading("double_blocks.1.img_attn.qkv.weight"), Reading::Once);
        let text = Repeated { is_text: true, ..Repeated::default() };
        assert_eq!(text.reading("encoder.block.3.layer.0.layer_norm.weight"), Reading::ForPrompts);
        assert_eq!(text.reading("encoder.final_layer_norm.weight"), Reading::Once);
    }
}
