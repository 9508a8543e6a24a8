// Vercel's AI SDK, by its provider for servers like this one, and by that for OpenAI's Responses.
import assert from "node:assert/strict";
import test from "node:test";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, embedMany, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { CALLS, CHAT, ECHO, EMBEDDINGS, SCRIPTED, key, script, url } from "./place.mjs";

const place = { name: "tokenbus", baseURL: url, supportsStructuredOutputs: true, includeUsage: true };
const provider = createOpenAICompatible({ ...place, apiKey: key });
const models = { chat: provider, responses: createOpenAI({ baseURL: url, apiKey: key }).responses };
const asked = { model: provider(CHAT), prompt: "Where is the Colosseum?", temperature: 0, maxOutputTokens: 40, maxRetries: 0 };
const Place = z.object({ city: z.enum(["Rome", "Oslo"]), open: z.boolean() });
const weather = tool({ inputSchema: z.object({ city: z.enum(["Rome", "Oslo"]) }), execute: async ({ city }) => JSON.stringify([{ text: city }]) });

for (const [api, of] of Object.entries(models)) {
  test(`${api}: a stream is the whole reply, and tells its usage`, async () => {
    const short = { ...asked, model: of(ECHO), maxOutputTokens: 5 };
    const whole = await generateText(short);
    const stream = streamText(short);
    assert.equal(await stream.text, whole.text);
    assert.equal((await stream.usage).totalTokens, whole.usage.totalTokens);
    assert.equal(await stream.finishReason, whole.finishReason);
  });

  test(`${api}: an object fits its schema, whole and streamed`, async () => {
    const output = Output.object({ schema: Place });
    Place.parse((await generateText({ ...asked, model: of(CHAT), output })).output);
    Place.parse(await streamText({ ...asked, model: of(CHAT), output }).output);
  });

  test(`${api}: a call is forced and its arguments fit`, async () => {
    const forced = tool({ inputSchema: z.object({ city: z.enum(["Rome", "Oslo"]) }) });
    const toolChoice = { type: "tool", toolName: "weather" };
    const { toolCalls } = await generateText({ ...asked, model: of(CHAT), tools: { weather: forced }, toolChoice });
    assert.ok(["Rome", "Oslo"].includes(toolCalls[0].input.city));
  });

  test(`${api}: a call is carried out, and its result is answered`, async () => {
    const stream = streamText({ model: of(SCRIPTED), messages: script(...CALLS), tools: { weather }, stopWhen: stepCountIs(3), maxRetries: 0 });
    assert.equal(await stream.text, "Rome");
    assert.deepEqual((await stream.steps).map((step) => step.finishReason), ["tool-calls", "stop"]);
  });
}

test("thoughts are no text", async () => {
  const stream = streamText({ model: provider(SCRIPTED), messages: script({ reasoning: "hm" }, { text: "Yes." }), maxRetries: 0 });
  assert.equal(await stream.text, "Yes.");
  assert.equal(await stream.reasoningText, "hm");
});

test("completions and embeddings", async () => {
  const { text } = await generateText({ ...asked, model: provider.completionModel(ECHO), maxOutputTokens: 3 });
  assert.ok(text);
  const { embeddings } = await embedMany({ model: provider.embeddingModel(EMBEDDINGS), values: ["one", "two"] });
  assert.deepEqual(embeddings.map((vector) => vector.length), [384, 384]);
});

test("errors carry their status and what they say", async () => {
  const wrong = createOpenAICompatible({ ...place, apiKey: "wrong" });
  for (const [model, status] of [[provider("nobody"), 404], [wrong(ECHO), 401]]) {
    await assert.rejects(
      generateText({ ...asked, model }),
      (error) => APICallError.isInstance(error) && error.statusCode === status && !error.isRetryable,
    );
  }
});

test("a request can be called off", async () => {
  const controller = new AbortController();
  const { textStream } = streamText({ ...asked, model: provider(ECHO), maxOutputTokens: 8000, abortSignal: controller.signal });
  for await (const piece of textStream) if (piece) controller.abort();
  await generateText({ ...asked, model: provider(ECHO), maxOutputTokens: 1 });
});
