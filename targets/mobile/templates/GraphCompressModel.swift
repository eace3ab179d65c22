// Loads model.ort (from the app's bundle) and runs it. In the Podfile:
//   pod 'onnxruntime-objc', '>= @VERSION@'
// An older version may refuse the file.
import Foundation
import onnxruntime_objc

final class GraphCompressModel {
    private let environment: ORTEnv
    private let session: ORTSession

    init() throws {
        environment = try ORTEnv(loggingLevel: .warning)
        let options = try ORTSessionOptions()
        @SWIFT_PROVIDER@
        guard let path = Bundle.main.path(forResource: "model", ofType: "ort") else {
            throw CocoaError(.fileNoSuchFile)
        }
        session = try ORTSession(env: environment, modelPath: path, sessionOptions: options)
    }

    /// @RETURNS@ Token ids come from tokenizer.json, for example by huggingface/swift-transformers.
    func run(@SWIFT_PARAMETERS@) throws -> [@SWIFT_NUMBER@] {
        let inputs: [String: ORTValue] = [
@SWIFT_INPUTS@
        ]
        let outputs = try session.run(withInputs: inputs, outputNames: [@SWIFT_OUTPUT@], runOptions: nil)
        guard let output = outputs[@SWIFT_OUTPUT@] else { throw CocoaError(.coderValueNotFound) }
        let data = try output.tensorData() as Data
        return data.withUnsafeBytes { Array($0.bindMemory(to: @SWIFT_NUMBER@.self)) }
    }

    private func tensor<Number>(
        _ numbers: [Number], _ type: ORTTensorElementDataType, _ shape: [NSNumber]
    ) throws -> ORTValue {
        let data = numbers.withUnsafeBufferPointer { NSMutableData(data: Data(buffer: $0)) }
        return try ORTValue(tensorData: data, elementType: type, shape: shape)
    }
}
