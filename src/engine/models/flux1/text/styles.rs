//! Style images in the embeddings of a prompt.
//!
//! Follows `FluxPriorReduxPipeline` in diffusers' `pipeline_flux_prior_redux.py`: an image's rows come behind those of the prompt,
//! both are multiplied by the image's scale, and the results of several images are added up, as are the pooled vectors.

use std::collections::VecDeque;

use candle_core::{DType, Error, Result, Tensor};

use super::PromptEmbedding;
use crate::domain::conditioning::StyleImage;
use crate::domain::spec::GenerateSpec;

/// A style image with its prompt.
pub(crate) struct Styled<'a> {
    pub(crate) prompt: &'a PromptEmbedding,
    /// The image's rows, `[style tokens, width]`.
    pub(crate) image: &'a Tensor,
    /// What the rows of both are multiplied by.
    pub(crate) scale: f64,
    /// What the prompt's pooled vector is multiplied by.
    pub(crate) pooled_scale: f64,
}

/// The embedding of prompts with style images, in f32: `[T5 tokens + style tokens, width]`, and the pooled vector.
///
/// # Errors
/// When there are none, they are not of the same size, or the device is out of memory.
pub(crate) fn combined<'a>(styled: impl IntoIterator<Item = Styled<'a>>) -> Result<PromptEmbedding> {
    let mut sum: Option<PromptEmbedding> = None;
    for Styled { prompt, image, scale, pooled_scale } in styled {
        let rows = Tensor::cat(&[prompt.sequence.to_dtype(DType::F32)?, image.to_dtype(DType::F32)?], 0)?;
        let (rows, pooled) = ((rows * scale)?, (prompt.pooled.to_dtype(DType::F32)? * pooled_scale)?);
        sum = Some(match sum {
            None => PromptEmbedding { pooled, sequence: rows },
            Some(sum) => PromptEmbedding { pooled: (sum.pooled + pooled)?, sequence: (sum.sequence + rows)? },
        });
    }
    sum.ok_or_else(|| Error::msg("there are no style images to combine"))
}

/// The style images of an image that are still to be embedded, and what their embeddings are joined to.
pub(crate) struct PendingStyles {
    left: VecDeque<StyleImage>,
    /// The rows of those that are embedded, with their scales.
    embedded: Vec<(Tensor, f64)>,
    /// Of the prompt, and of the negative one if there is one.
    prompts: Vec<PromptEmbedding>,
    pub(crate) guidance: f64,
}

impl PendingStyles {
    /// Those of a request with these prompts. `None` where it has no style images.
    pub(crate) fn of(spec: &GenerateSpec, prompts: Vec<PromptEmbedding>) -> Option<Self> {
        let left: VecDeque<StyleImage> = spec.styles().iter().cloned().collect();
        (!left.is_empty()).then(|| Self { left, embedded: Vec::new(), prompts, guidance: spec.guidance() })
    }

    /// The next image to embed.
    pub(crate) fn first(&self) -> Option<&StyleImage> {
        self.left.front()
    }

    /// Takes the rows of [`Self::first`]. `true`: it was the last one.
    pub(crate) fn take(&mut self, rows: Tensor) -> bool {
        if let Some(style) = self.left.pop_front() {
            self.embedded.push((rows, style.scale));
        }
        self.left.is_empty()
    }

    /// The embedding of each prompt with the images.
    ///
    /// # Errors
    /// As [`combined`].
    pub(crate) fn combined(&self) -> Result<Vec<PromptEmbedding>> {
        let with_images = |prompt: &PromptEmbedding| {
            let styled = self.embedded.iter();
            combined(styled.map(|(image, scale)| Styled { prompt, image, scale: *scale, pooled_scale: *scale }))
        };
        self.prompts.iter().map(with_images).collect()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn rows(values: &[[f32; 2]]) -> Tensor {
        Tensor::from_vec(values.as_flattened().to_vec(), (values.len(), 2), &Device::Cpu).expect("rows")
    }

    #[test]
    fn images_come_behind_the_prompt_and_are_added_up_by_their_scales() {
        let prompt = PromptEmbedding { pooled: rows(&[[8.0, -8.0]]), sequence: rows(&[[1.0, 2.0]]) };
        let (one, two) = (rows(&[[3.0, 4.0]]), rows(&[[-1.0, 10.0]]));
        let styled = |image, scale, pooled_scale| Styled { prompt: &prompt, image, scale, pooled_scale };
        let embedding = combined([styled(&one, 1.0, 0.5), styled(&two, 0.5, 0.25)]).expect("combines");
        let values = |tensor: &Tensor| tensor.to_vec2::<f32>().expect("values");
        assert_eq!(values(&embedding.sequence), [[1.5, 3.0], [2.5, 9.0]]);
        assert_eq!(values(&embedding.pooled), [[6.0, -6.0]]);
        assert!(combined([]).is_err());
    }
}
