"""All HTTP that crosses to agents and model providers: policy, hold, dispatch, settle."""
