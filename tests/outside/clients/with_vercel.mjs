// Vercel's AI SDK does what its users do, and prints what it got: `node with_vercel.mjs BASE_URL KEY MODEL`.
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";

const [baseURL, apiKey, model] = process.argv.slice(2);
const providers = {
  openai: createOpenAICompatible({ name: "mandate", baseURL: `${baseURL}/v1`, apiKey, includeUsage: true }),
  anthropic: createAnthropic({ baseURL: `${baseURL}/v1`, apiKey }),
};
const weather = tool({
  description: "tells it",
  inputSchema: jsonSchema({ type: "object", properties: { city: { type: "string" } } }),
});

const told = {};
for (const [name, provider] of Object.entries(providers)) {
  const asked = { model: provider(model), prompt: "one two three", maxOutputTokens: 64, maxRetries: 0 };
  const answer = await generateText(asked);
  const stream = streamText(asked);
  let streamed = "";
  for await (const text of stream.textStream) streamed += text;
  const called = await generateText({ ...asked, tools: { weather } });
  const refused = await generateText({ ...asked, model: provider("no-such-model") }).catch((error) => error);
  told[name] = {
    text: answer.text,
    usage: answer.usage,
    streamed,
    streamedUsage: await stream.usage,
    tools: called.toolCalls.map((call) => call.toolName),
    refused: [refused.statusCode, refused.message],
  };
}
console.log(JSON.stringify(told));
