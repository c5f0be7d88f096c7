"""How much of the shift enters by features, by transcoder errors, by attention?

Four treatments of the base model, each with values of the merged one, the rest running free:

* features: every changed feature is set to its merged activation;
* errors: ``err_merged - err_base`` is added at every layer and position, where the error is the
  MLP output minus what the transcoder makes of it (an adapter on ``down_proj`` enters here);
* attention: every attention layer gives its merged output;
* together: merged attention outputs, features and errors at once.

    logits = component_logits(base, base_state, merged_state, merged=merged)

In *together* the error is put at its merged value rather than added to: the base's own error has
already answered to the merged inputs, and would be counted twice. MLP outputs then equal the
merged model's, so what *together* reaches is the whole shift but for rounding.
"""
