from .errors import UserError as UserError
from .files.weights import WeightsError as WeightsError
from .finetune.bayes import bayesianize as bayesianize
from .finetune.bayes import clamp_sigma as clamp_sigma
from .finetune.bayes import kl as kl
from .finetune.bayes import posterior_mean as posterior_mean
from .finetune.bayes import sigmas as sigmas
from .networks.text_encoder import TextEncoder as TextEncoder
from .networks.text_encoder import TextEncoderConfig as TextEncoderConfig
from .networks.tokenizer import Tokenizer as Tokenizer
from .networks.unet import UNet as UNet
from .networks.unet import UNetConfig as UNetConfig
from .networks.vae import VAE as VAE
from .networks.vae import VAEConfig as VAEConfig
from .pipeline import StableDiffusion as StableDiffusion

__version__: str
