/** Reports what failed, and how many did not: thousands of tests that passed tell nobody anything. */

import type { TestEvent } from "node:test/reporters";
import { inspect } from "node:util";

export default async function* reporter(source: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  for await (const { type, data } of source) {
    if (type === "test:fail")
      yield `FAILED ${data.name}\n${inspect(data.details.error.cause ?? data.details.error)}\n`;
    if (type === "test:stderr" || type === "test:stdout") yield data.message;
    if (type === "test:diagnostic" && data.nesting === 0) yield `${data.message}\n`;
  }
}
