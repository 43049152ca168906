/** What a call was refused with, for tests to compare as a whole. */

import assert from "node:assert/strict";
import { KKPError } from "@kkp/client";

/** Return the code and reason that a call is refused with; fails where it is not. */
export async function refused(call: Promise<unknown>): Promise<string> {
  const error = await failure(call);
  return error.reason === undefined ? error.code : `${error.code} ${error.reason}`;
}

export async function failure(call: Promise<unknown>): Promise<KKPError> {
  try {
    await call;
  } catch (error) {
    assert.ok(error instanceof KKPError, `no error of ours: ${error}`);
    return error;
  }
  return assert.fail("it was not refused");
}
