"""The paper's measures of photographs: Clip-T, Clip-I, Dino, Lpips and Clip-IQA."""
